"""Comparisons of a run's numbers with published ones (numbers/)."""
