"""Devices: where lanes of work run."""
