"""A config with its plan and its run directory: the start of commands and the Python API."""

from collections.abc import Sequence
from pathlib import Path

from taugrid.config.load import load
from taugrid.errors import UserError
from taugrid.orchestrator.plan.extractor import extractor
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.extension import check_extends


class Opened:
    """A config, its plan and its run directory."""

    def __init__(self, name: str, assignments: Sequence[str], out: str | None) -> None:
        self.config = load(name, assignments)
        self.rundir = RunDir(run_folder(name, out, self.config.name))
        rundir = self.rundir
        self.plan = plan(self.config, rundir.read_checkpoint, rundir.describe_network, rundir.fingerprint)


def run_folder(config: str, out: str | None, name: str) -> Path:
    """The run directory: --out, or else CONFIG if it is one, or else runs/`name`."""
    if out == "":
        raise UserError("--out is empty; give a folder")
    if out is None:
        return Path(config) if Path(config).is_dir() else Path("runs") / name
    if "://" in out:
        raise UserError(f"--out {out}: object stores are not supported yet; give a folder that all workers see")
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    return Path(out)


def open_existing(directory: str) -> Opened:
    """The run in a directory that `taugrid run` made; `UserError` if there is none."""
    if not (Path(directory) / "config.json").is_file():
        raise UserError(
            f"{directory} is not a run directory (it has no config.json); give the one that `taugrid run` made"
        )
    return Opened(directory, (), None)


def open_to_plan(name: str, assignments: Sequence[str], out: str | None) -> Opened:
    """Open a config that is to be looked at before it is run.

    Raises:
        UserError: if the config is wrong, has no extractor, or would orphan images.
    """
    opened = Opened(name, assignments, out)
    check_extends(opened.config, opened.plan, opened.rundir)
    extractor(opened.config)
    return opened


def open_to_run(name: str, assignments: Sequence[str], out: str | None, address: str) -> Opened:
    """Open a config that is to be run on the Ray cluster at `address`.

    Raises:
        UserError: if the config is wrong, or a cluster is joined and the run directory is named by a relative path.
    """
    require_shared(run_folder(name, out, ""), address)
    return Opened(name, assignments, out)


def require_shared(out: str | Path, address: str) -> None:
    """Raise `UserError` if a cluster is joined but the run directory's path is relative."""
    if address != "local" and not Path(out).is_absolute():
        raise UserError(f"with --address {address}, --out must be an absolute path that every node sees")
