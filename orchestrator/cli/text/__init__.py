"""What commands print, as text: runs and plans, and scores of external images."""
