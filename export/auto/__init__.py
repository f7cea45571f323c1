"""`--auto`: which block and context sizes a bundle offers."""
