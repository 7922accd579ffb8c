"""Networks by name: the registry, building and storing them, and what a machine can hold."""
