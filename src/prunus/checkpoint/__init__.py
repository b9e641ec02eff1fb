"""Checkpoints on disk: where they are, what they hold, how one block runs, how a new checkpoint is written."""
