"""Sparse inference on a CPU: pruned weights are kept packed, one bit per weight and what is left, and read so.

    model = prunus.sparse.load("pruned-packed")  # a transformers model; generate() as ever
    prunus.sparse.sparsify(model)                # or one that is in memory already

docs/sparse.md has what it gains, and where.
"""

from prunus.sparse.linear import DenseLinear, SparseLinear, multiply
from prunus.sparse.models import Summary, describe, load, sparsify
from prunus.sparse.weight import SparseWeight, pack

__all__ = ["DenseLinear", "SparseLinear", "SparseWeight", "Summary", "describe", "load", "multiply", "pack", "sparsify"]
