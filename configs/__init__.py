"""The experiments that taugrid ships, one YAML each, as package data."""
