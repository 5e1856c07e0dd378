"""What workers take, which nodes there are, and how many workers fit on them."""
