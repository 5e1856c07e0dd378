"""Readers of each kind of place that holds images: a folder, an `.npz`, Parquet, a data set of torch-fidelity.

A reader says how many images there are and goes through them in order, decoded. Imports no torch, unless a data set of
torch-fidelity is read.
"""
