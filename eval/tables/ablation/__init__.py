"""Tables of grids that compare settings: one table for all models, means over seeds, effects of each key."""
