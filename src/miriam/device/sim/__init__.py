"""The model of a GPU."""
