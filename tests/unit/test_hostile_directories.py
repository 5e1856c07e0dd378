"""A run directory may be another person's: whatever its files say, nothing outside it is written or removed."""

import json
import shutil
from datetime import UTC, datetime

import pytest
from matplotlib.figure import Figure
from nights import checkpoint, empty_verdict, taugrid, write_config

from taugrid.orchestrator.report import write
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.storage import write_sealed

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of two cells."""
    folder = tmp_path_factory.mktemp("finished")
    network = checkpoint(folder / "network")
    config = write_config(
        folder / "night.yaml", network, grid={"steps": [2], "eta": [0.0, 1.0]}, evaluate={"metrics": ["fid"]}
    )
    taugrid("run", config, "--out", folder / "run")
    return folder / "run"


@pytest.fixture
def both(finished, tmp_path):
    """A history of one night, and a run that is no part of it."""
    night = tmp_path / "history" / "nights" / "2026-01-01"
    shutil.copytree(finished, night / "run")
    write_sealed(night / "verdict.json", empty_verdict("2026-01-01", datetime(2026, 1, 1, tzinfo=UTC).isoformat()))
    return night / "run", shutil.copytree(finished, tmp_path / "victim")


def everything(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def with_ids(run, plan, of, new):
    """The plan with another id of a cell or the model, and folders by which a path through it leads elsewhere."""
    (cell, _), (model,) = plan["cells"], plan["models"]
    if of == "cell":
        (run / "samples" / f"S0002-eta0-{new.partition('/')[0]}").mkdir(exist_ok=True)
        cell["id"] = new
    else:
        model["id"] = new
        for cell in plan["cells"]:
            cell["model"] = new
    (run / "plan.json").write_text(json.dumps(plan))


@pytest.mark.parametrize("command", ["clean", "report"])
@pytest.mark.parametrize("of", ["cell", "model"])
def test_ids_in_a_plan_lead_nowhere(both, tmp_path, of, command):
    run, victim = both
    before = everything(victim)
    images = next((victim / "samples").glob("S0002-eta0-*"))
    up = "../" * len((run / "samples").relative_to(tmp_path).parts)
    for new in (f"x/../{up}victim/samples/{images.name}", f"{up}outside", str(victim / "new"), "a/b"):
        with_ids(run, json.loads((victim / "plan.json").read_text()), of, new)
        if command == "clean":
            taugrid("clean", tmp_path / "history", "--keep-nights", 0, "--yes", code=None)
        else:
            taugrid("report", run, code=None)
        assert everything(victim) == before
        assert {path.name for path in tmp_path.iterdir()} == {"history", "victim"}
        assert not (run / "models" / "a").exists()


def test_the_name_of_a_figure_leads_nowhere(tmp_path):
    """A key of the grid is part of it, and a plan.json may have any text as a key."""
    rundir = RunDir(tmp_path / "run")
    rundir.root.mkdir()
    write.save_figures(rundir, {"by-x/../../../new": Figure()})
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert len(list(rundir.figures.iterdir())) == 2
