"""The dispatch of tasks to workers: scheduling policy, the pool of Ray actors, the loop between them, the cluster."""
