"""Allocations, a file each: a function from importance scores to sparsities, and the measurement of the scores.

Scores are measured once, saved and reused; the rest is arithmetic on a few numbers.
"""

from prunus.recipes.declarations import Allocation, load

ALLOCATIONS = load(Allocation)
