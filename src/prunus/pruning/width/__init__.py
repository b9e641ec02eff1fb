"""Remove channels of feed-forward networks."""
