"""What the chaos tests did and found, for one line at their end."""

from collections import Counter

from experiment import Counts

from taugrid.words import counted


class Tally:
    """Counts over all chaos tests of a session."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.kills: Counter[str] = Counter()
        """What was killed -> how often."""
        self.nodes: set[str] = set()
        """Nodes on which something was killed."""
        self.faults: list[str] = []
        """What else was planted."""
        self.runs = 0
        """Run directories that were compared with an undisturbed one."""
        self.wrong = Counts(0, 0, 0, 0)

    def add(self, found: Counts) -> None:
        """Add what was wrong with a run directory."""
        self.runs += 1
        self.wrong = Counts(*(a + b for a, b in zip(self.wrong, found, strict=True)))

    def __str__(self) -> str:
        kills = ", ".join(f"{what} {count}" for what, count in self.kills.most_common())
        lost, doubled, other, quarantined = self.wrong
        return (
            f"chaos: seed {self.seed}: {self.kills.total()} kills ({kills}) on {counted(len(self.nodes), 'node')}, "
            f"{counted(len(self.faults), 'fault')} planted, {counted(self.runs, 'run')} compared: {lost} files lost, "
            f"{doubled} doubled, {other} of other weights or noise, {quarantined} tasks quarantined but not planted"
        )
