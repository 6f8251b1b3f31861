"""Models on disk and in memory: loading, precision, saving, adapters, and memory that runs out."""
