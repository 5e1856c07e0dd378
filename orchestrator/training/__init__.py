"""The training stage: each model that is missing, side by side where the cluster has room."""
