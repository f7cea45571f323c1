"""Text and ids: tokenizer, documents, chat and infilling templates, stop strings."""
