"""Figures: charts and pictures."""
