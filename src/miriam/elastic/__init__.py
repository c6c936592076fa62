"""Arithmetic of elastic kernels: what shapes a kernel may take, and how its grid is cut. Needs no GPU."""
