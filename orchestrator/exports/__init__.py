"""Exports of a run for other tools: images, data sets, and tables. They read what the run recorded and run nothing."""
