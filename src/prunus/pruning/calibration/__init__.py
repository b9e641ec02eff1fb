"""What pruning learns from calibration text: the token sequences, hidden states, statistics of inputs, gradients."""
