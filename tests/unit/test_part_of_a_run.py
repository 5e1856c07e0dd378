"""`--only`: a part of a grid is done, and the rest is neither done nor called missing."""

import io

import pytest
from in_process import CONFIG, small_run
from rich.console import Console
from snapshots import recorded

from taugrid.errors import UserError
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.selection import select
from taugrid.orchestrator.session import Session
from taugrid.storage import read_json

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")


def do(opened, stages, *only, progress=None):
    selected = select(opened.plan, only)
    return Session(opened, "local", progress or Progress(), selected).do(stages)


def test_a_part_is_done_and_tables_show_what_is_there(tmp_path):
    stages = ("sample", "evaluate", "report")
    with small_run(tmp_path) as opened:
        first, second = opened.plan.cells
        outcome = do(opened, ("evaluate",), "eta=1")
        assert [outcome.labels[name] for name in outcome.missing] == ["S=2 eta=1"]
        outcome = do(opened, stages, "eta=1")
        assert (outcome.missing, [row["cell"] for row in outcome.rows]) == ({}, [second.id])
        assert not list(opened.rundir.samples.glob(f"*{first.id}"))
        assert read_json(opened.rundir.config)["grid"] == [{"steps": [2], "eta": [0.0, 1.0]}], "the whole config"
        assert len((opened.rundir.tables / "cells.csv").read_text().splitlines()) == 3
        outcome = do(opened, stages, "steps=2,eta=0")
        assert [row["cell"] for row in outcome.rows] == [first.id, second.id]
        with pytest.raises(UserError, match="eta is 0, 1"):
            do(opened, stages, "eta=3")


def test_a_log_of_the_rest_counts_all_cells_and_their_network_evaluations(tmp_path):
    printed = io.StringIO()
    progress = Progress(Console(file=printed, soft_wrap=True))
    with small_run(tmp_path) as opened:
        do(opened, ("sample", "evaluate"), "eta=1")
        do(opened, ("sample", "evaluate"), progress=progress)
    recorded(printed.getvalue(), "evaluations")
    shown = {name: (work.done, work.total) for name, work in progress.state.work.items()}
    assert (shown["sample"], shown["score"]) == ((80, 80), (2, 2))


def test_what_workers_can_not_do_is_refused_only_if_the_part_needs_it(tmp_path):
    """Workers here have no GPU, which TF32 needs."""
    both = CONFIG.replace("eta: [0.0, 1.0]", "precision: [float32, tf32]")
    with small_run(tmp_path, both) as opened:
        assert do(opened, ("sample",), "precision=float32").missing == {}
        with pytest.raises(UserError, match=r"sample\.precision: tf32"):
            do(opened, ("sample",))
