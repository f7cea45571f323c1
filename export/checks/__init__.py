"""What is checked before anything is written: memory, parity, golden vectors."""
