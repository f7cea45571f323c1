"""Further members of a bundle: card, chat template, provenance."""
