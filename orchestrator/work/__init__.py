"""The kinds of work: a file for each says what is missing on disk and how a worker makes it."""
