"""Which worker takes a ready row, and when."""
