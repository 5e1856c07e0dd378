"""`taugrid verify`: whether a run directory is whole, and what to do where it is not."""
