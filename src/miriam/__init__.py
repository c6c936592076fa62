"""Miriam: critical networks keep their latency, the others get the rest of the GPU."""
