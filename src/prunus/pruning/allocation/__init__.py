"""Allocations, one file each: importance scores of blocks in, sparsities out; what is measured stands beside it.

Scores are measured once, saved and reused; the rest is arithmetic on a few numbers.
"""

from prunus.declarations import Allocation, load

ALLOCATIONS = load(Allocation)
