"""Evaluation: features, metrics, tables and figures."""
