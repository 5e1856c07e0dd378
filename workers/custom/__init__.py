"""User code that a config names (networks and extractors): finding, hashing and describing it."""
