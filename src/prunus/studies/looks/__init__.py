"""Parts that `find` and `choose` share: variants in an engine, and checks of declarations and of stored rows."""
