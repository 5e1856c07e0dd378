"""Opens a run, from a config or from its directory: the start of commands and the Python API."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from taugrid.config import GRID_SECTIONS, Config
from taugrid.config.load import CONFIG_NAME, Given, Override, find, load
from taugrid.errors import UserError
from taugrid.orchestrator.dispatch.cluster import check_form
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.plan.patterns import checkpoints_in, resolve_patterns
from taugrid.orchestrator.plan.record import from_json, to_json
from taugrid.orchestrator.plan.scoring import Scoring
from taugrid.orchestrator.plan.trust import custom_code, require_trusted, trust
from taugrid.orchestrator.report import requested
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.extension import check_extends, config_sha256
from taugrid.orchestrator.rundir.grown import read_sizes
from taugrid.orchestrator.rundir.models import evaluation
from taugrid.registry.samplers import unchecked
from taugrid.run_id import is_run_directory
from taugrid.storage import is_url, open_place, read_json, write_json


def open_config(
    name: Given,
    assignments: Sequence[Override],
    out: str | None,
    runs_code: bool = False,
    trust_code: bool = False,
    same_checkpoints: bool = False,
    dry: bool = False,
) -> Run:
    """Read a config and plan its run.

    Custom code that the user's own config file names is run, to describe it, and is trusted from then on. Code that the
    config.json of a directory names is run only if `runs_code` is set and the code is trusted.

    Args:
        name: a file, the name of a shipped config, a run directory, or a config's content.
        assignments: see `config.load.load`.
        out: the run directory; None: runs/<name>, or `name` where that is one.
        runs_code: the command does work, so it needs the code that the config of a directory names.
        trust_code: run that code even if it is not in the user's trust file; `UserError` without.
        same_checkpoints: a pattern of checkpoints matches those that the directory was begun with, not newer ones.
        dry: nothing is downloaded, and models whose files are not here are planned too.
    """
    file = None if isinstance(name, Mapping) else find(name)
    is_own = file is None or file.name != CONFIG_NAME
    with unchecked(not is_own and not runs_code):
        config = load(name, assignments)
        rundir = _run_directory(name, out, config.name)
        rundir.downloads = not dry
        if file is not None and not is_own:
            rundir.runs_code = runs_code
            _check_code(config, rundir, str(name), file, trust_code)
        recorded = [str(record["path"]) for record in rundir.model_records() if "path" in record]
        if same_checkpoints:
            begun = read_json(rundir.config, rundir.storage)
            recorded = checkpoints_in(begun.get("grid", []) if isinstance(begun, dict) else [])
        config, notes = resolve_patterns(config, recorded, same_checkpoints, dry)
        lookups = Lookups(
            rundir.read_checkpoint,
            rundir.describe_network,
            rundir.fingerprint,
            rundir.try_sampler,
            rundir.read_column,
            rundir.read_vae,
        )
        planned = plan(config, lookups, dry)
    run = Run(config, replace(planned, notes=(*planned.notes, *notes)), rundir, read_sizes(rundir))
    requested.check(config, run.plan)
    if is_own:
        trust(custom_code(config))
    return run


def _check_code(config: Config, rundir: RunDir, name: str, file: Path, trust_code: bool) -> None:
    """Raise `UserError` if the command needs code that `file`, a run directory's config, names, and may not run it."""
    code = custom_code(config)
    if rundir.runs_code and not trust_code:
        named = custom_code(load(name))
        require_trusted([each for each in code if each in named], file)
    elif not rundir.runs_code and file.parent.absolute() != rundir.root and code:  # no record there describes it
        raise UserError(
            f"{name} is the config of a run directory, and the code that it names is not run by commands that "
            f"only look; give {file.parent} or, if the config is yours, a copy of it under another name"
        )


def _run_directory(config: Given, out: str | None, name: str) -> RunDir:
    root, storage = open_place(run_folder(config, out, name), "CONFIG" if out is None else "--out")
    storage.require(root)
    is_run_directory(root, storage)  # refuses one that another version made
    return RunDir(root, storage)


def run_folder(config: Given, out: str | None, name: str) -> str:
    """The run directory, a path or a URL: --out, or else CONFIG if it is one, or else runs/`name`."""
    if out == "":
        raise UserError("--out is empty; give a folder or a URL")
    if out is None:
        return str(config if _is_run_directory(config) else Path("runs") / name)
    if not is_url(out) and Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    return out


def _is_run_directory(config: Given) -> bool:
    """Whether a config is given as the run directory that holds it."""
    return isinstance(config, str) and (is_url(config) or Path(config).is_dir())


def open_existing(directory: str, dry: bool = False) -> Run:
    """The run in a directory that `taugrid run` made; `UserError` if there is none. `open_config` explains `dry`."""
    root, storage = open_place(directory, "DIR")
    storage.require(root)
    if not is_url(directory) and Path(directory).is_file():
        raise UserError(f"{directory} is a file; this command takes a run directory")
    if not is_run_directory(root, storage):
        raise UserError(f"{directory} is not a run directory; give the one that `taugrid run` made")
    return _as_recorded(directory, (), None) or open_config(directory, (), None, dry=dry)


def record_plan(run: Run, scoring: Scoring | None = None) -> None:
    """Write plan.json: the plan, and how its cells are scored; None: as recorded before."""
    scored = run.rundir.recorded_evaluation() if scoring is None else evaluation(scoring)
    value = {"config_sha256": config_sha256(run.config.recorded), **to_json(run.configured), "evaluation": scored}
    write_json(run.rundir.plan, value, run.rundir.storage)


@unchecked()
def _as_recorded(name: Given, assignments: Sequence[Override], out: str | None) -> Run | None:
    """The run in a directory, with the plan that its last session recorded, so that nothing is planned. None if there
    is no such record, config.json has changed since, or `assignments` change the plan."""
    if out is not None or not _is_run_directory(name):
        return None
    config = load(name, assignments)
    rundir = _run_directory(name, out, config.name)
    rundir.runs_code = False
    planned = {*GRID_SECTIONS, "sample", "grid"}
    if assignments and config.model_dump(include=planned) != load(name).model_dump(include=planned):
        return None
    begun = read_json(rundir.config, rundir.storage)
    recorded: Any = read_json(rundir.plan, rundir.storage)
    try:
        if not recorded["cells"] or recorded["config_sha256"] != config_sha256(begun or {}):
            return None
        run = Run(config, from_json(recorded), rundir, read_sizes(rundir))
    except (KeyError, TypeError, ValueError, AttributeError, UserError):
        return None  # written by a different version of taugrid, or edited
    requested.check(config, run.plan)
    return run


def are_images(place: str) -> bool:
    """Whether a place may hold images from elsewhere: a local folder that is no run directory, an .npz or Parquet."""
    if not is_url(place) and Path(place).is_dir():
        return not is_run_directory(*open_place(place, "DIR"))
    return place.endswith((".npz", ".parquet"))


def directory_of(given: str) -> str:
    """The run directory: `given` or, if that is a config, the directory of its runs without --out; `UserError` if it is
    a file that is not a config."""
    if _is_run_directory(given):
        return given
    try:
        file = find(given)
    except UserError:
        return given
    return str(file.parent) if file.name == CONFIG_NAME else run_folder(given, None, load(given).name)


def open_to_plan(name: Given, assignments: Sequence[Override], out: str | None) -> Run:
    """Open a config for `taugrid plan`. Missing files are not an error, and nothing is downloaded; `UserError` if the
    config is wrong or would orphan images."""
    run = open_config(name, assignments, out, dry=True)
    if not run.plan.pending:  # else the cells' ids are unknown
        check_extends(run.config, run.plan, run.rundir)
    return run


def open_to_run(
    name: Given,
    assignments: Sequence[Override],
    out: str | None,
    address: str,
    runs_code: bool = True,
    trust_code: bool = False,
    same_checkpoints: bool = False,
) -> Run:
    """Open a config for work on the Ray cluster at `address`. See `open_config` for the rest."""
    require_shared(run_folder(name, out, ""), address)
    recorded = None if runs_code else _as_recorded(name, assignments, out)
    return recorded or open_config(name, assignments, out, runs_code, trust_code, same_checkpoints)


def require_shared(out: str | Path, address: str) -> None:
    """Raise `UserError` if the address is not valid, or a cluster is joined and the run directory is relative."""
    check_form(address)
    if address != "local" and not is_url(str(out)) and not Path(out).is_absolute():
        raise UserError(f"with --address {address}, --out must be an absolute path that every node sees")
