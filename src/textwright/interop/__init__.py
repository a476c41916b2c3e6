"""Foreign formats: one file each. What a format cannot hold is refused by name, never dropped."""
