"""Calibration: token sequences, hidden states between blocks, statistics of Linears' inputs, and loss gradients."""
