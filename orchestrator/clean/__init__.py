"""What may go from a run directory or a history of nights, and its removal."""
