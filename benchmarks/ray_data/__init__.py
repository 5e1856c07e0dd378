"""taugrid and Ray Data at the same work, on the same cluster: `python -m benchmarks.ray_data`."""
