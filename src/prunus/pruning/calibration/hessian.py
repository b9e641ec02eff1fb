"""The Hessian of a Linear's squared output error, which is X^T X of its inputs, and the Cholesky factor of its inverse.

SparseGPT's code factors H, inverts it and factors the inverse. The same upper U with U^T U = H^-1 is the inverse of the
upper triangular R with R R^T = H. R comes from one Cholesky factorisation of H with both axes reversed, so U takes one
factorisation and one triangular inverse: less work, and the inverse of H is never formed. Shapes: I input features.
"""

import torch
from torch import Tensor

from prunus.errors import PrunusError

DAMPING = 0.01  # share of the mean diagonal that is added to the diagonal, as in the authors' code
RETRIES = 3  # how many times damping is multiplied by 10
SMALL = 256  # triangular matrices up to this size are inverted without splitting them


class Hessian:
    """X^T X (I, I) over all calibration tokens, in float32. No result depends on its scale. name: for messages.

    Linears that read the same input share one Hessian and its factor, which is computed when first needed.
    """

    def __init__(self, matrix_II: Tensor, name: str = "a Linear") -> None:
        self.matrix_II, self.name = matrix_II, name
        self.dead_I = matrix_II.diagonal() == 0
        self.warning: str | None = None
        self._factors: dict[float, Tensor] = {}

    def inverse_factor(self, damping: float = DAMPING) -> Tensor:
        """(I, I) float32: upper U with U^T U = (H + damping * mean(diag H))^-1.

        Dead inputs (zero on every token) are treated as independent inputs of average size. If H is still singular,
        damping is multiplied by 10 up to three times, first in float32, then in float64, and `warning` says so. If all
        fail, PrunusError is raised: the identity as a substitute would be magnitude pruning.
        """
        if damping not in self._factors:
            self._factors[damping] = self._factor(damping)
        return self._factors[damping]

    def damped(self, damping: float, dtype: torch.dtype = torch.float32) -> Tensor:
        """A copy with damping added to the diagonal, and with the mean diagonal for dead inputs."""
        matrix_II = self.matrix_II.to(dtype, copy=True)
        live = ~self.dead_I
        mean = matrix_II.diagonal()[live].mean().item() if bool(live.any()) else 1.0
        matrix_II.diagonal()[self.dead_I] = mean
        matrix_II.diagonal().add_(damping * mean)
        return matrix_II

    def _factor(self, damping: float) -> Tensor:
        for dtype in (torch.float32, torch.float64):
            for share in (damping * 10**n for n in range(RETRIES + 1)):
                factor_II = inverse_factor(self.damped(share, dtype))
                if factor_II is None:
                    continue
                if share != damping or dtype != torch.float32:
                    precision = " in float64" if dtype == torch.float64 else ""
                    self.warning = (
                        f"{self.name}: the Hessian needed damping {share:g}{precision} instead of {damping:g}"
                    )
                return factor_II.float()
        raise PrunusError(
            f"{self.name}: the Hessian of its {len(self.matrix_II)} inputs stays singular even with damping "
            f"{damping * 10**RETRIES:g}; use more or other calibration text, or --method wanda"
        )


def inverse_factor(matrix_II: Tensor) -> Tensor | None:
    """Upper U with U^T U = matrix^-1, which overwrites the matrix; None if that is not positive definite."""
    # Reversing both axes turns the lower Cholesky factor into the upper R with R R^T = H.
    _reverse(matrix_II)
    # LAPACK stores matrices by columns: its upper factor is the lower one in row order.
    columns_II = matrix_II.mT
    failed = torch.empty((), dtype=torch.int32, device=matrix_II.device)
    torch.linalg.cholesky_ex(columns_II, upper=True, out=(columns_II, failed))
    if int(failed):
        return None
    _invert_lower(matrix_II)
    _reverse(matrix_II)
    return matrix_II if bool(matrix_II.sum().isfinite()) else None


def _invert_lower(lower_II: Tensor) -> None:
    """Invert a lower triangular matrix in place: two thirds of the work of solving for the identity, without a copy."""
    half = len(lower_II) // 2
    if len(lower_II) <= SMALL:
        identity_II = torch.eye(len(lower_II), dtype=lower_II.dtype, device=lower_II.device)
        lower_II.copy_(torch.linalg.solve_triangular(lower_II, identity_II, upper=False))
        return
    first_II, below_II, last_II = lower_II[:half, :half], lower_II[half:, :half], lower_II[half:, half:]
    _invert_lower(first_II)
    _invert_lower(last_II)
    torch.mm(last_II, below_II @ first_II, out=below_II).neg_()


def _reverse(matrix_II: Tensor) -> None:
    """Reverse both axes in place."""
    flat_N = matrix_II.view(-1)
    size, step = len(flat_N), 1 << 20
    for begin in range(0, size // 2, step):
        end = min(begin + step, size // 2)
        front, back = flat_N[begin:end], flat_N[size - end : size - begin]
        kept = front.flip(0)
        front.copy_(back.flip(0))
        back.copy_(kept)
