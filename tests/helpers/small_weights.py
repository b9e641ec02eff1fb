"""A weight matrix of two rows and three tokens, for masks by hand."""

import torch

WEIGHT = torch.tensor([[0.5, -1, 0.25, 2], [-0.75, 0.1, 1.5, -0.2]])

TOKENS = torch.tensor([[1.0, 2, 0, 1], [0, 1, 3, -1], [2, 0, 1, 0.5]])
