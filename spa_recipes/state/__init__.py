"""What is on disk: atomic writes, content digests, and stage folders with their manifests."""
