"""User code named by a config: asking another process about it, and what it is known by."""
