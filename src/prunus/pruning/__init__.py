"""From a checkpoint folder to a pruned checkpoint folder."""
