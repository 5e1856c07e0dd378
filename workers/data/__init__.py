"""Data sets as 8-bit images: where they are, how they are read and decoded."""
