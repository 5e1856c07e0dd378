"""The regression gate's mathematics: did any cell of a night get worse than the baseline?"""
