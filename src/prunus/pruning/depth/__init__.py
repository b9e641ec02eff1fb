"""Depth methods, a file each: from a model and calibration tokens, the blocks to keep and how they are merged."""

from prunus.recipes.declarations import DepthMethod, load

DEPTH_METHODS = load(DepthMethod)
