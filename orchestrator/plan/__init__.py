"""From a config to models, cells and shards with their identities, without a clock or a cluster.

It reads what a config names (checkpoints, code, images, references) and writes nothing.
"""
