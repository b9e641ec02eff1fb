"""Find the most compressed version of a model that provably still solves and still stops (docs/find.md)."""
