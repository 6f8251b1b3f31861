"""Preference alignment with few labels: recipe -> plan -> stages (SPA, arXiv 2406.04412)."""

__version__ = "0.1.0"
