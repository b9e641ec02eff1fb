"""Made-up comparisons with a known truth, for docs/measurements/verdicts.md: how often their words are wrong."""
