"""Snapshots of runs, baseline files, and the comparison of two."""
