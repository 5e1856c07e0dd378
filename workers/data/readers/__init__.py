"""How each kind of place where images lie is read: a folder, an `.npz`, Parquet, a data set of torch-fidelity.

A reader says how many images there are and goes through them in order, decoded. Imports no torch, unless a data set of
torch-fidelity is read.
"""
