"""Statistics of samples that are kept, and whether two of them agree."""
