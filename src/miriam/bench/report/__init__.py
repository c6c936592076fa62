"""The report: one HTML file that works offline, and the two files that go with it."""

from miriam.bench.report.page import render, write

__all__ = ["render", "write"]
