"""The elastic-kernel generator: what shapes a kernel may take, and how it is cut. Needs no GPU."""
