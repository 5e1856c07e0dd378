"""What `taugrid plan` says of a run before it is started."""
