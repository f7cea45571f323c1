"""Training text: read, tokenised, kept as shards, drawn as batches."""
