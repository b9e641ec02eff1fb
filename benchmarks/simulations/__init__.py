"""Comparisons that are made up with a known truth, for docs/verdicts.md: how often their words are wrong."""
