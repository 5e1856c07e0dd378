"""Samplers of networks that were distilled, or trained, to need few steps."""
