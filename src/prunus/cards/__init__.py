"""Model cards: the README.md of a checkpoint."""
