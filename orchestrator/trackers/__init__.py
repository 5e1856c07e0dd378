"""Experiment trackers (`track` in the config): MLflow, Weights & Biases and TensorBoard follow a session.

Each is a class in a file of its own, and works in a process of its own (`__main__.py`) that the driver starts and tells
what happens (`background.py`). So nothing that a library does, prints or waits for reaches the driver. `results.py`
reads what is tracked from the run directory.
"""
