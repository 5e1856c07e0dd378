"""Weights of the extractors that taugrid ships, each with the script that made it and its held-out accuracy."""
