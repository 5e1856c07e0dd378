"""The scheduling policy: pure state machines that `dispatcher.py` puts together. No clock, no Ray, no files."""
