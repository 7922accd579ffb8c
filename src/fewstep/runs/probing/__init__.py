"""What a run measures of its student while it trains."""
