"""Grids: their points, the names of what stands at a point, and how a user selects points."""
