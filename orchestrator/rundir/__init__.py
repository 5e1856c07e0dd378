"""The run directory: its paths, integrity, lock, events and provenance."""
