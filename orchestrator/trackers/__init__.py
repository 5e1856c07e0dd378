"""Experiment trackers (`track` in the config): MLflow, Weights & Biases and TensorBoard follow a session.

Each is a class in a file of its own, and works in a process of its own (`__main__.py`) that the driver starts
(`background.py`) and that reads the run directory once a minute (`results.py`). So nothing that a library does, prints
or waits for reaches the driver.
"""
