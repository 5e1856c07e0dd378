"""From a config to models, cells and shards with their identities: pure, without a clock or a cluster."""
