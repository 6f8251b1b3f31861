"""What half precision does to preference learning: the parts of `bench_precision`."""
