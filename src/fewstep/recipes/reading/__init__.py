"""Reading recipes, overriding them, and saying what is wrong with them."""
