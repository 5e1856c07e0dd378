"""A night: run or resume tonight's run, judge it against the baseline, and add it to the history."""
