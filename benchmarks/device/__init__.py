"""How fast, how exact and how repeatable taugrid is on the accelerator that is there."""
