"""A run: what it is, what it will take, its four stages in a row, and its record."""
