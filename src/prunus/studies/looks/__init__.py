"""What `find` and `choose` share: variants in an engine, and the check of what is declared and of rows."""
