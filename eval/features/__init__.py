"""Feature extractors: by name, torch-fidelity's, ours, and custom ones."""
