"""Runs as jobs of a Ray cluster elsewhere: what is sent there, and how they are followed."""
