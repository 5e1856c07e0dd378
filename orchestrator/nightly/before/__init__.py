"""Before a night begins: what must hold, what it costs, and what it would compare."""
