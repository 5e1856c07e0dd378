"""The run directory: its names, what is whole in it, its lock, its events and its provenance."""
