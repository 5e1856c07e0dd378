"""Published numbers (numbers/) beside those of a run."""
