"""The configuration: a file for each section, and loading."""
