"""`taugrid board`: all runs below some folders and buckets, from what they recorded. It plans nothing, loads no weights
and runs no code that a directory names."""
