"""The field's benchmarks: their files, and what is counted from them. No model is run here."""
