"""What a config can name, without what it needs: data sets and metrics, an entry each."""
