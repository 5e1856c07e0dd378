"""Who does what: the scheduling policy, the pool of Ray actors, the loop between them, and the cluster."""
