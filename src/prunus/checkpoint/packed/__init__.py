"""The packed format: one bit per weight and the weights that are left (docs/format.md)."""
