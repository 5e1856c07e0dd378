"""A run as Python holds it: what is on disk as DataFrames, arrays and figures. Looking starts nothing."""
