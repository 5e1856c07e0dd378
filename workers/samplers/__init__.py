"""Samplers, a file for each."""
