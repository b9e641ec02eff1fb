"""Criteria for experts, one file each: from what calibration showed of a block's experts, a score for each of them."""

from prunus.declarations import Criterion, load

CRITERIA = load(Criterion)
