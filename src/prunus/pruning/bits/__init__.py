"""Weights as integers and scales."""
