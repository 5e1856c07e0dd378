"""Tables: rows, pivots, differences, and published numbers."""
