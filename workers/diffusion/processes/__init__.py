"""Forward processes, a file for each."""
