"""Sets of other libraries, turned into zips of images once."""
