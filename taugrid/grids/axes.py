"""What tables make of a grid's keys, before there is a table: rows and columns, replicates, and what is no axis."""

from typing import NamedTuple

TRAINING, SAMPLING = "train.seed", "seed"
SEEDS = (TRAINING, SAMPLING)  # the grid keys that make replicates and not settings
UNITS = {TRAINING: "training", SAMPLING: "sampling seed"}  # key -> the name of a replicate

EVALUATIONS = "network_evaluations"

NOT_AXES = frozenset({"model", "num_samples", "protocol", *SEEDS})
"""Settings along which cells are never neighbours: ids and seeds have no order, and other N or protocols can't be
compared."""


class Layout(NamedTuple):
    """Which columns of quality.csv make a table's rows and columns. Others that vary split it into separate tables."""

    rows: tuple[str, ...] = ()  # empty: everything that varies, and eta at the end
    columns: str = "steps"
    x: str = "steps"  # the horizontal axis of figures: steps, evaluations or seconds
    metrics: tuple[str, ...] = ()  # of several that could decide, the first does; empty: in the order of tables


USUAL = Layout()  # rows of settings and eta, columns of S
