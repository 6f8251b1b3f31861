"""A model as one file for other programs: `spa export`. `gguf` writes the file, `vocabulary` its tokenizer."""
