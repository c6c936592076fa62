"""A server that speaks the Open Inference Protocol."""
