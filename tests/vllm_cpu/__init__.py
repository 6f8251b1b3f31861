"""vLLM on the CPU: what its environment needs, and checks that run inside it."""
