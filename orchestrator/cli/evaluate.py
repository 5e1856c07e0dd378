"""`taugrid evaluate`: score the cells of a run, or external images."""

from typing import Any

import click

from taugrid.errors import UserError
from taugrid.orchestrator.cli.options import (
    Command,
    RunOptions,
    cluster_options,
    dry_run_option,
    names_in,
    only_option,
    print_value,
    set_option,
    trust_option,
)
from taugrid.orchestrator.cli.run import run_stages
from taugrid.registry.metrics import DEFAULT_METRICS, METRICS

METRICS_HELP = f"Some of {','.join(METRICS)}.  [default: {','.join(DEFAULT_METRICS)}]"


@click.command(cls=Command)
@click.argument("config", required=False)
@click.option("--out", metavar="DIR", help="Run directory.  [default: runs/<name>]")
@set_option
@click.option(
    "--samples",
    multiple=True,
    metavar="PATH",
    help="Score these images instead: a folder, an .npz, Parquet; may be repeated, for a column each.",
)
@click.option(
    "--reference",
    metavar="PATH",
    help="Compare --samples with this: images as above, an .npz of mu and sigma, a data set with its split "
    "(fashion-mnist/train), a folder with Fashion-MNIST's IDX files and a split (DIR/train), or a run directory: what "
    "that was scored against.",
)
@click.option(
    "--extractor",
    metavar="NAME",
    help="For --samples.  [default: that of the reference's run or data set, else inception-v3-compat]",
)
@click.option("--weights", metavar="FILE", help="For --samples: the extractor's weights.")
@click.option("--metrics", callback=names_in, metavar="LIST", help=METRICS_HELP)
@cluster_options
@only_option
@dry_run_option
@trust_option
def evaluate(**given: Any) -> None:
    """Score CONFIG's cells or, with --samples, any images.

    Examples:
        taugrid evaluate my.yaml  # score what is sampled, again or with other metrics
        taugrid evaluate --samples pngs --reference runs/mine  # images from elsewhere
        taugrid evaluate --samples pngs --reference digits/train --metrics fid,kid  # a data set
    """
    names = ("samples", "reference", "extractor", "weights", "metrics")
    external = {name: value for name in names if (value := given.pop(name)) not in (None, ())}
    requested = RunOptions(**given)
    if given["config"] is not None:
        if name := next(iter(external), None):
            raise UserError(f"--{name} is for external images; for a CONFIG, set it in the section evaluate")
        run_stages(requested, ("evaluate",))
        return
    if not {"samples", "reference"} <= external.keys():
        raise UserError("give a CONFIG, or --samples PATH and --reference PATH for external images")
    of_a_run = requested.out is not None or requested.workers or requested.only or requested.dry_run
    if of_a_run or requested.address != "local":
        raise UserError(
            "--out, --workers, --address, --only and --dry-run are for a run; external images are scored here"
        )
    _score_external(external, requested)


def _score_external(given: dict[str, Any], requested: RunOptions) -> None:
    from taugrid.orchestrator.cli.text.images import scores_text
    from taugrid.orchestrator.external import score_images
    from taugrid.orchestrator.progress import Progress

    samples, reference = given.pop("samples"), given.pop("reference")
    if len(set(samples)) < len(samples):
        raise UserError("--samples: a place is given twice; give each once")
    section = {key: list(value) if key == "metrics" else value for key, value in given.items()}
    changes, trusts = requested.assignments, requested.trust_code
    with Progress() as progress:
        scores = score_images(samples, reference, section, changes, progress, trust_code=trusts)
    document = scores[0] if len(scores) == 1 else {"samples": scores}
    print_value(document, requested.as_json, lambda _: scores_text(scores))
