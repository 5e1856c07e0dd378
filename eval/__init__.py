"""What quality means: features, statistics, tables and figures."""
