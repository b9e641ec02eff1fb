"""Sparse inference on a CPU: pruned weights stay packed in memory, as one bit per weight and the kept values.

    model = prunus.sparse.load("pruned-packed")  # a transformers model; call generate() as usual
    prunus.sparse.sparsify(model)                # or convert a loaded model in place

docs/sparse.md says how much faster this is, and on which processors.
"""

from prunus.sparse.linear import DenseLinear, SparseLinear, multiply
from prunus.sparse.models import Summary, describe, load, sparsify
from prunus.sparse.weight import SparseWeight, pack

__all__ = ["DenseLinear", "SparseLinear", "SparseWeight", "Summary", "describe", "load", "multiply", "pack", "sparsify"]
