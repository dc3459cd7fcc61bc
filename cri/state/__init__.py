"""Facts about sandboxes and containers: `records` says what they are, `store` keeps them on disk."""
