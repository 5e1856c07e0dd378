"""What a network is told besides x and t: class labels. Imports no torch."""
