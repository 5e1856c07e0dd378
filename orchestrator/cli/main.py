"""The command line. Each command is a few lines over functions elsewhere, which it imports when it is called: `--help`
must answer at once.
"""

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from taugrid import __version__
from taugrid.errors import Exit, RunFailed, UserError
from taugrid.metrics import DEFAULT_METRICS, METRICS

if TYPE_CHECKING:
    from taugrid.config import Config
    from taugrid.orchestrator.plan.cells import Plan
    from taugrid.orchestrator.rundir.directory import RunDir


METRICS_HELP = f"Of {','.join(METRICS)}.  [default: {','.join(DEFAULT_METRICS)}]"


class Opened:
    """A command's config, its plan and its run directory."""

    config: "Config"
    plan: "Plan"
    rundir: "RunDir"

    def __init__(self, name: str, assignments: tuple[str, ...], out: str | None) -> None:
        from taugrid.config.load import load
        from taugrid.orchestrator.plan.grid import plan
        from taugrid.orchestrator.rundir.directory import RunDir

        self.config = load(name, assignments)
        self.rundir = RunDir(_folder(name, out, self.config.name))
        rundir = self.rundir
        self.plan = plan(self.config, rundir.read_checkpoint, rundir.describe_network, rundir.fingerprint)


def _folder(config: str, out: str | None, name: str) -> Path:
    if out == "":
        raise UserError("--out is empty; give a folder")
    if out is None:
        return Path(config) if Path(config).is_dir() else Path("runs") / name
    if "://" in out:
        raise UserError(f"--out {out}: this version writes to folders that all workers see, not yet to object stores")
    if Path(out).exists() and not Path(out).is_dir():
        raise UserError(f"--out {out} is a file; give a folder")
    return Path(out)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """CONFIG, --out and --set, as every command that takes a config has them."""
    for option in (
        click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key; VALUE is YAML."),
        click.option("--out", metavar="DIR", help="Run directory.  [default: runs/<name>]"),
        click.argument("config"),
    ):
        command = option(command)
    return command


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--address, --workers and --json, as every command that does work has them."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout, and nothing else there."),
        click.option("--workers", type=click.IntRange(1), help="Sets cluster.workers."),
        click.option(
            "--address", default="local", show_default=True, help="local (a Ray of its own), auto, or HOST:PORT."
        ),
    ):
        command = option(command)
    return command


json_option = click.option(
    "--json", "as_json", is_flag=True, help="One JSON document on stdout, and nothing else there."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """How good are a diffusion model's samples at S steps?

    CONFIG is a file, the name of a shipped config (digits, gaussian), or a run directory.
    """


@cli.command()
@config_options
@json_option
def plan(config: str, out: str | None, assignments: tuple[str, ...], as_json: bool) -> None:
    """Show what a run would do, and what is done already. Starts nothing."""
    from taugrid.orchestrator.cli.text import plan_text
    from taugrid.orchestrator.inspection import describe
    from taugrid.orchestrator.plan.extension import check_extends
    from taugrid.orchestrator.plan.extractor import extractor

    opened = Opened(config, assignments, out)
    check_extends(opened.config, opened.plan, opened.rundir)
    extractor(opened.config)
    _print(describe(opened.config, opened.plan, opened.rundir), as_json, plan_text)


@cli.command()
@click.argument("directory", metavar="DIR")
@json_option
def status(directory: str, as_json: bool) -> None:
    """Show how far a run is, from its directory alone."""
    from taugrid.orchestrator.cli.text import plan_text
    from taugrid.orchestrator.inspection import describe

    opened = _existing(directory)
    _print(describe(opened.config, opened.plan, opened.rundir), as_json, plan_text)


def _stage(name: str, stages: tuple[str, ...], text: str) -> None:
    """Add the command `name`, which does `stages`."""

    @config_options
    @cluster_options
    def command(
        config: str,
        out: str | None,
        assignments: tuple[str, ...],
        address: str,
        workers: int | None,
        as_json: bool,
    ) -> None:
        _run_stages(config, out, assignments, address, workers, stages, as_json)

    command.__doc__ = text
    cli.command(name)(command)


_stage("run", ("train", "sample", "evaluate", "report"), "Do everything that is missing: train, sample, score, report.")
_stage("train", ("train",), "Train the models of the config.")
_stage("sample", ("sample",), "Sample every cell; models must be there.")


@cli.command()
@click.argument("config", required=False)
@click.option("--out", metavar="DIR", help="Run directory.  [default: runs/<name>]")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key; VALUE is YAML.")
@click.option("--samples", metavar="PATH", help="Score these images instead: a folder, an .npz, Parquet.")
@click.option("--reference", metavar="PATH", help="What --samples are compared with; also an .npz of mu and sigma.")
@click.option("--extractor", metavar="NAME", help="For --samples.  [default: inception-v3-compat]")
@click.option("--weights", metavar="FILE", help="For --samples: the extractor's weights.")
@click.option("--metrics", metavar="LIST", help=METRICS_HELP)
@cluster_options
def evaluate(
    config: str | None,
    out: str | None,
    assignments: tuple[str, ...],
    address: str,
    workers: int | None,
    as_json: bool,
    **elsewhere: str | None,
) -> None:
    """Score the cells of CONFIG whose images are there, or with --samples images that were made elsewhere."""
    given = {key: value for key, value in elsewhere.items() if value is not None}
    if config is None:
        if not {"samples", "reference"} <= given.keys():
            raise UserError("give a CONFIG, or --samples PATH and --reference PATH for images made elsewhere")
        if out is not None or workers is not None or address != "local":
            raise UserError("--out, --workers and --address are for a run; images made elsewhere are scored right here")
        _score_elsewhere(given, assignments, as_json)
        return
    if given:
        raise UserError(f"--{next(iter(given))} is for images made elsewhere; a CONFIG says it in its section evaluate")
    _run_stages(config, out, assignments, address, workers, ("evaluate",), as_json)


def _score_elsewhere(given: dict[str, str], assignments: tuple[str, ...], as_json: bool) -> None:
    from taugrid.orchestrator.cli.text import scores_text
    from taugrid.orchestrator.external import score_images
    from taugrid.orchestrator.progress import Progress

    section: dict[str, Any] = {key: given[key] for key in ("extractor", "weights") if key in given}
    if "metrics" in given:
        section["metrics"] = [name.strip() for name in given["metrics"].split(",")]
    with Progress() as progress:
        scores = score_images(given["samples"], given["reference"], section, assignments, progress)
    _print(scores, as_json, scores_text)


@cli.command()
@click.argument("directory", metavar="DIR")
@click.argument("cell_a", metavar="CELL")
@click.argument("cell_b", metavar="CELL")
@click.option("--join", is_flag=True, help="Compare although protocols differ or no noise is shared, and say so.")
@json_option
def compare(directory: str, cell_a: str, cell_b: str, join: bool, as_json: bool) -> None:
    """The difference of two cells' FID, the second's minus the first's, with its paired standard error.

    CELL is a cell's id, the name of its folder, or a beginning of these that fits one cell alone.
    """
    from taugrid.eval.tables.differences_files import difference_line
    from taugrid.orchestrator.inspection import compare as compare_cells

    opened = _existing(directory)
    _print(compare_cells(opened.config, opened.plan, opened.rundir, cell_a, cell_b, join), as_json, difference_line)


_stage("report", ("report",), "Write tables and figures from the scores there are.")
_stage(
    "reconstruct",
    ("train", "reconstruct"),
    """Encode held-out images to x_T and decode them again, with the grid's S steps each way (the paper's table 2).

    Models that are missing are trained.""",
)
_stage(
    "interpolate",
    ("train", "interpolate"),
    """Decode what lies between the x_T of samples, with the grid's S steps (the paper's figure 6).

    Models that are missing are trained.""",
)


def _run_stages(
    config: str,
    out: str | None,
    assignments: tuple[str, ...],
    address: str,
    workers: int | None,
    stages: tuple[str, ...],
    as_json: bool,
) -> None:
    if workers is not None:
        assignments = (*assignments, f"cluster.workers={workers}")
    _require_shared(_folder(config, out, ""), address)
    _work(Opened(config, assignments, out), stages, address, as_json)


def _require_shared(out: str | Path, address: str) -> None:
    if address != "local" and not Path(out).is_absolute():
        raise UserError(f"with --address {address}, --out must be an absolute path that every node sees")


def _work(opened: Opened, stages: tuple[str, ...], address: str, as_json: bool) -> None:
    from taugrid.orchestrator.cli.text import outcome_json, print_outcome
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.session import Run

    with Progress() as progress:
        outcome = Run(opened.config, opened.plan, opened.rundir, address, progress).do(stages)
    if as_json:
        click.echo(json.dumps(outcome_json(opened.rundir, outcome), indent=2, allow_nan=False))
    else:
        print_outcome(opened.rundir, outcome, opened.config.report.join_protocols)
    if outcome.missing:
        sys.exit(Exit.INCOMPLETE)


@cli.command()
@click.option("--out", metavar="DIR", help="Keep the run here.  [default: a temporary folder]")
@cluster_options
def selfcheck(out: str | None, address: str, workers: int | None, as_json: bool) -> None:
    """Run samples whose every pixel and distribution is known through the whole system, and judge them.

    Exits 1 if anything disagrees: with a float64 loop of the paper, image by image, or with the closed form.
    """
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    with ExitStack() as stack:
        if out is None:
            if address != "local":
                raise UserError(f"with --address {address}, give --out: an absolute path that every node sees")
            out = stack.enter_context(TemporaryDirectory(prefix="taugrid-selfcheck-"))
        _selfcheck(out, address, workers, as_json)


def _selfcheck(out: str, address: str, workers: int | None, as_json: bool) -> None:
    from taugrid.orchestrator import selfcheck
    from taugrid.orchestrator.cli.text import print_selfcheck
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.session import Run
    from taugrid.storage import read_json

    _require_shared(out, address)
    opened = Opened("selfcheck", () if workers is None else (f"cluster.workers={workers}",), out)
    there = read_json(opened.rundir.config)
    if there is not None and there.get("name") != opened.config.name:
        raise UserError(f"--out {out} holds another run; give an empty folder, or one of an earlier selfcheck")
    with Progress() as progress:
        missing = Run(opened.config, opened.plan, opened.rundir, address, progress).do(("sample", "evaluate")).missing
        if missing:
            name, reason = next(iter(missing.items()))
            raise RunFailed(f"{len(missing)} cells could not be made, so nothing was judged; {name}: {reason}")
        findings = selfcheck.judge_run(opened.config, opened.plan, opened.rundir, progress)
    if as_json:
        click.echo(json.dumps(selfcheck.as_json(findings, opened.rundir), indent=2, allow_nan=False))
    else:
        print_selfcheck(findings)
    if findings.problems:
        raise RunFailed(f"selfcheck found {len(findings.problems)} things wrong")
    click.echo(f"selfcheck: {len(findings.judgements)} cells agree with the paper", err=True)


@cli.command()
@click.argument("directory", metavar="DIR")
@json_option
def verify(directory: str, as_json: bool) -> None:
    """Re-read every file of a run and decode every image."""
    from taugrid.orchestrator.inspection import verify as verify_files
    from taugrid.orchestrator.progress import Progress

    opened = _existing(directory)
    total = sum(cell.settings.num_samples for cell in opened.plan.cells)
    with Progress() as progress:
        progress.begin("verifying", total, "images")
        progress.started()
        seen = 0

        def tick(count: int) -> None:
            nonlocal seen
            seen += count
            progress.update(seen)

        damages = verify_files(opened.config, opened.plan, opened.rundir, tick)
    listed = [{"path": opened.rundir.relative(path), "reason": reason} for path, reason in damages]
    if as_json:
        click.echo(json.dumps({"dir": str(opened.rundir.root), "images": seen, "damaged": listed}, indent=2))
    else:
        for damage in listed:
            click.echo(f"{damage['path']}: {damage['reason']}")
        verdict = f"{len(listed)} things are damaged, changed or missing" if listed else "everything is whole"
        click.echo(f"{seen} images decoded; {verdict}", err=bool(listed))
    if listed:
        sys.exit(Exit.FAILED)


@cli.command()
@click.argument("directory", metavar="DIR")
@click.argument("cell")
@click.option("--to", "folder", required=True, metavar="FOLDER", help="A new or empty folder.")
def export(directory: str, cell: str, folder: str) -> None:
    """Write a cell's images as PNG files named by their index.

    CELL is a cell's id, the name of its folder, or a beginning of these that fits one cell alone.
    """
    from taugrid.orchestrator.inspection import export as export_images
    from taugrid.orchestrator.inspection import find_cell

    opened = _existing(directory)
    count = export_images(find_cell(opened.plan, cell), opened.rundir, Path(folder))
    click.echo(f"{count} images in {folder}")


@cli.group()
def config() -> None:
    """Look at a config."""


@config.command()
@click.argument("config")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key; VALUE is YAML.")
@json_option
def show(config: str, assignments: tuple[str, ...], as_json: bool) -> None:
    """Print the whole config, defaults filled in."""
    import yaml

    from taugrid.config.load import load

    values = load(config, assignments).model_dump(mode="json")
    _print(values, as_json, lambda v: yaml.safe_dump(v, sort_keys=False, default_flow_style=None, width=100).rstrip())


@config.command()
def schema() -> None:
    """Print the JSON schema of a config, for editors."""
    from taugrid.config import schema as config_schema

    click.echo(json.dumps(config_schema(), indent=2))


@config.command()
@click.argument("config")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Override a key; VALUE is YAML.")
def validate(config: str, assignments: tuple[str, ...]) -> None:
    """Check a config, its grid included."""
    opened = Opened(config, assignments, None)
    click.echo(f"{config} is valid: {len(opened.plan.models)} models, {len(opened.plan.cells)} cells", err=True)


def _existing(directory: str) -> Opened:
    if not (Path(directory) / "config.json").is_file():
        raise UserError(
            f"{directory} is no run directory (it has no config.json); give the one that `taugrid run` made"
        )
    return Opened(directory, (), None)


def _print(value: Any, as_json: bool, text: Callable[[Any], str]) -> None:
    click.echo(json.dumps(value, indent=2, allow_nan=False) if as_json else text(value))


def main() -> NoReturn:
    """Run a command; people's mistakes are one line on stderr, bugs a traceback."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # batch systems ask so; it means what Ctrl-C means
    try:
        cli.main(prog_name="taugrid", standalone_mode=False)
        sys.exit(Exit.DONE)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except UserError as error:
        click.echo(f"taugrid: {error}", err=True)
        sys.exit(Exit.USAGE)
    except RunFailed as error:
        click.echo(f"taugrid: {error}", err=True)
        sys.exit(Exit.FAILED)
    except (KeyboardInterrupt, click.Abort):
        click.echo("taugrid: interrupted; the same command goes on from here", err=True)
        sys.exit(Exit.INTERRUPTED)
