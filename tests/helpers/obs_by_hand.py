"""The least-squares update of one row, by the normal equations."""

import torch


def least_squares(weight, tokens, keep):
    """The best weights of a mask: each row solved for itself, float64, with the same damping."""
    matrix = tokens.double().T @ tokens.double()
    matrix += 0.01 * matrix.diagonal().mean() * torch.eye(len(matrix))
    best = torch.zeros_like(weight, dtype=torch.float64)
    for row in range(len(weight)):
        live = keep[row].nonzero().flatten()
        best[row, live] = torch.linalg.solve(matrix[live][:, live], matrix[live] @ weight[row].double())
    return best, matrix
