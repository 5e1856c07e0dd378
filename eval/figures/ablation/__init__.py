"""Figures of grids that compare settings."""
