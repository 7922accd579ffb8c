"""A run's folder: its layout, whose it is, what it is known by, and what it is made from."""
