"""Whether a run could start here, and on every node of a cluster."""
