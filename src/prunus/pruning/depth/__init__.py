"""Depth methods, one file each: a model and calibration tokens -> which blocks stay, and what they are made of."""

from prunus.declarations import DepthMethod, load

DEPTH_METHODS = load(DepthMethod)
