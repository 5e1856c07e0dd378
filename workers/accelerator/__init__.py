"""What accelerators differ in: how precisely they compute, what fits into their memory, and what ran on them before."""
