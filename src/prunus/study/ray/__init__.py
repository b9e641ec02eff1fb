"""A study on a Ray cluster."""
