"""The elastic-kernel generator, and the arithmetic of elastic kernels. Needs no GPU."""
