"""Runs that are stopped on purpose, at every point that matters, and what must be true of them afterwards."""
