"""What a run is compared with: snapshots of runs, baseline files, and the comparison of two."""
