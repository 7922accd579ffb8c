"""What commands print: results as small tables of plain text, one room a kind of result."""
