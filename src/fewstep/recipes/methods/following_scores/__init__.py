"""Methods whose student follows scores."""
