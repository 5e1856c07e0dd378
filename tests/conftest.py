from hypothesis import settings

# Machines here share their cores: a time limit for each example would fail tests for what else is running.
settings.register_profile("taugrid", deadline=None)
settings.load_profile("taugrid")
