"""Remove channels of feed-forward networks: where they are, which are kept, and the fit of what is left."""
