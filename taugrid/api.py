"""The Python API: what the commands do, for notebooks and scripts.

Each function loads what it needs when it is called, so that `import taugrid` stays light.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike, fspath
from types import NoneType
from typing import TYPE_CHECKING, Any

from taugrid.errors import RunFailed, UserError
from taugrid.orchestrator import STAGES
from taugrid.words import counted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from taugrid.config.load import Override
    from taugrid.orchestrator.nightly.history import HistoryView
    from taugrid.orchestrator.view.run import RunView

REPLACED_WHOLE = ("model", "grid")  # sections whose keys exclude each other: a mapping replaces them

Path = str | PathLike[str]


def open(directory: Path) -> "RunView | HistoryView":
    """The run in a directory, or at a URL: its tables, cells, images and figures. Starts nothing.

    Of a history of nights (`taugrid nightly --history`) it is the history: its nights, their verdicts and runs. Raises
    `taugrid.errors.UserError` if there is neither.
    """
    from taugrid.orchestrator.nightly.history import HistoryView
    from taugrid.orchestrator.nightly.places import find_history
    from taugrid.orchestrator.opened import open_existing
    from taugrid.orchestrator.view.run import RunView

    place = _checked("directory", directory, *_PATH)
    history = find_history(place)
    return RunView(open_existing(place)) if history is None else HistoryView(history)


def board(*places: Path) -> "pd.DataFrame":
    """All cells of all runs below folders or URLs, as `taugrid board` shows them. Starts and plans nothing.

    The frame has a row for each scored cell: the column `run`, the path of its run below the place, unique among all,
    and all columns of the runs' quality.csv. What a run does not have is missing (NaN or None). Raises
    `taugrid.errors.UserError` if nothing can be read at any of `places`.
    """
    import pandas as pd

    from taugrid.orchestrator.board.document import records
    from taugrid.orchestrator.board.find import Place
    from taugrid.orchestrator.board.index import Index

    found = records(Index([Place.of(_checked("a place", place, *_PATH)) for place in places]).look_or_refuse())
    frame = pd.DataFrame(found["cells"], columns=None if found["cells"] else ["run"])
    return frame.astype({name: float for name in frame if frame[name].isna().all()})


def plan(
    config: Path | Mapping[str, Any],
    out: Path | None = None,
    assignments: Sequence[str] = (),
    **overrides: Any,
) -> dict[str, Any]:
    """What a run would do and what is already done, as `taugrid plan --json` prints it. Starts nothing.

    Raises `taugrid.errors.UserError` if the config is wrong, has no extractor, or would orphan images.

    Args:
        config: a file, the name of a shipped config, a run directory, or a config's content.
        out: the run directory; None: runs/<name>, or `config` where that is one.
        assignments: `key=value`, as --set takes them.
        overrides: keys of the config with their values, applied after `assignments`. A mapping is merged into its
            section, or replaces it if it is `model` or `grid`: `sample={"num_samples": 200}, grid={"steps": [5, 10]}`.
            A dotted key goes in as `**{"model.unet.dropout": 0.1}`.
    """
    from taugrid.orchestrator.opened import open_to_plan
    from taugrid.orchestrator.view.dry_run import describe_plan

    changes = [*_texts("assignments", assignments), *_assigned(overrides)]
    opened = open_to_plan(_checked("config", config, *_PATH, Mapping), changes, _checked("out", out, *_PATH, NoneType))
    return describe_plan(opened)


def run(
    config: Path | Mapping[str, Any],
    out: Path | None = None,
    assignments: Sequence[str] = (),
    address: str = "local",
    stages: Sequence[str] = STAGES,
    trust_code: bool = False,
    progress: bool = True,
    only: Sequence[str] = (),
    until: str | None = None,
    most: int | None = None,
    **overrides: Any,
) -> "RunView":
    """Do what is still missing, like `taugrid run`, and return the run: its tables, cells, images and figures.

    Raises `taugrid.errors.UserError` if something must be changed first, and `taugrid.errors.RunFailed` if a stage
    could not go on, or some cells could not be finished.

    Args:
        config: as in `plan`.
        out: as in `plan`.
        assignments: as in `plan`.
        address: `local` for a private Ray cluster, `auto`, or HOST:PORT. With a cluster that others started, the run
            directory must be named by an absolute path.
        stages: some of `STAGES`.
        trust_code: run the custom code that a run directory's config names, even one from another user, as --trust-code
            does.
        progress: show on stderr how far it is.
        only: work on the cells alone that one of these texts fits, such as "schedule=cosine,steps=50", as --only does.
        until: `told-apart` or `told-apart=KEY`: double N of the cells alone whose order is undecided, as --until does.
        most: the largest N of `until`, as --max.
        overrides: as in `plan`.
    """
    from taugrid.orchestrator.opened import open_to_run
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.selection import select
    from taugrid.orchestrator.session import Session
    from taugrid.orchestrator.view.run import RunView
    from taugrid.orchestrator.work.growing import Until

    stages = _texts("stages", stages)
    if not stages or set(stages) - set(STAGES):
        raise UserError(f"stages must be some of {', '.join(STAGES)}, not {stages!r}")
    runs_code = set(stages) != {"report"}
    changes = [*_texts("assignments", assignments), *_assigned(overrides)]
    given, address = _checked("config", config, *_PATH, Mapping), _checked("address", address, str)
    opened = open_to_run(given, changes, _checked("out", out, *_PATH, NoneType), address, runs_code, trust_code)
    selected = select(opened.plan, _texts("only", only))
    with Progress() if progress else Progress.silent() as shown:
        outcome = Session(opened, address, shown, selected, Until.of(until, most)).do(stages)
    if outcome.missing:
        name, reason = next(iter(outcome.missing.items()))
        cells = counted(len(outcome.missing), "cell")
        raise RunFailed(f"{cells} could not be finished; {outcome.labels.get(name, name)}: {reason}")
    return RunView(opened)


def evaluate(
    samples: Any,
    reference: Any,
    progress: bool = True,
    value_range: tuple[float, float] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Scores of any images against any others, as `taugrid evaluate --samples --json` prints them. Needs no run.

    Raises `taugrid.errors.UserError` if images, reference, weights or settings can't be used.

    Args:
        samples: a folder of PNG or JPEG files, an `.npz`, Parquet, or an array or torch tensor (on any device) of shape
            (N, H, W), (N, H, W, 1 or 3) or (N, 1 or 3, H, W), uint8 or, with `value_range`, floating point.
        reference: as `samples`; or an `.npz` with `mu` and `sigma`, a data set with its split (`fashion-mnist/train`),
            or a run directory, for what that run was scored against.
        progress: show on stderr how far it is.
        value_range: the values of black and white in arrays of floats, (0, 1) or (-1, 1). Floats are rounded to 8 bits,
            to nearest, because that is what pictures have.
        settings: keys of the config's section evaluate, such as `extractor="pixels"` and `metrics=["fid", "kid"]`.
    """
    from taugrid.orchestrator.external import score_images
    from taugrid.orchestrator.progress import Progress

    with Progress.silent() if not progress else Progress() as shown:
        return score_images([_given(samples)], _given(reference), settings, (), shown, value_range=value_range)[0]


def compare(
    a: Path,
    b: Path,
    reference: Path,
    *,
    to: Path | None = None,
    progress: bool = True,
    margin: float | None = None,
    alpha: float | None = None,
    **scoring: Any,
) -> dict[str, Any]:
    """Whether images `b` are worse than images `a`, as `taugrid compare A B --reference R --json` prints it.

    Images with the same names are paired. The verdict is `result`; `metrics` has `a`, `b`, `difference` (b - a), `se`
    and `verdict` of each; `pairing`, `pairs`, `notes`, `warnings`, and what the images are, are beside it. Raises
    `taugrid.errors.UserError` if images, reference, weights or settings can't be used.

    Args:
        a: the old side: a folder of PNG or JPEG files, an `.npz`, or Parquet.
        b: the new side.
        reference: as `a`; or a data set with its split (`digits/test`), or a run directory, whose reference and
            extractor are then used.
        to: a new folder for a picture of the worst pairs, and the numbers of all.
        progress: show on stderr how far it is.
        margin: the accepted regression, as a share of A's value; None: 0.02.
        alpha: the probability of a false alarm, for all metrics together; None: 0.01.
        scoring: `extractor`, `weights`, `metrics`, `pair_by` and `trust_code`, as the options of the command.
    """
    from pathlib import Path as LocalPath

    from taugrid.orchestrator.baseline.snapshot import ImagesRequest
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.view.images import compare_images

    if not all(isinstance(images, str | PathLike) for images in (a, b)):
        raise UserError("compare takes images as a folder, .npz or Parquet, not as arrays")
    scoring = {key: tuple(value) if key == "metrics" else value for key, value in scoring.items()}
    judging = {key: value for key, value in {"margin": margin, "alpha": alpha}.items() if value is not None}
    if unknown := scoring.keys() - ImagesRequest.model_fields.keys():
        raise TypeError(f"compare() got an unexpected keyword argument {min(unknown)!r}")
    request = ImagesRequest(reference=_checked("reference", reference, *_PATH), **scoring)
    target = None if to is None else LocalPath(to)
    with Progress() if progress else Progress.silent() as shown:
        return compare_images(fspath(a), fspath(b), request, shown, target, **judging)


def sample(
    model: Any,
    indices: int | Iterable[int] = 16,
    *,
    shape: tuple[int, int, int] | None = None,
    diffusion: Mapping[str, Any] = {},
    device: Any = None,
    guide: Any = None,
    **settings: Any,
) -> "NDArray[np.uint8]":
    """Images of a model, as arrays in memory, without a run: image n is what a run would sample with the same settings.

    They are (n, H, W) if they are grey, else (n, H, W, 3), uint8, in the order of `indices`. Raises
    `taugrid.errors.UserError` if the model or the settings can't be used, and `taugrid.errors.NotFinite` if the network
    returns NaN or infinity.

    Args:
        model: the folder of a checkpoint or an id on the hub; a mapping, as the config's section model (an oracle, a
            custom network); or a network in memory: an `nn.Module` or function that predicts from x, (B, C, H, W)
            float32, and the time indices (B,) in 0..T-1 (and labels (B,), if it has classes), as docs/custom-network.md
            says, or a diffusers UNet2DModel.
        indices: which samples; a number n means 0 to n - 1.
        shape: (channels, height, width), needed where the model does not say it.
        diffusion: keys of the config's section diffusion; others come from the checkpoint, or are the defaults.
        device: a torch.device, or its name; None: a GPU if there is one.
        guide: the network that `guidance` leads away from: a folder or an id on the hub, as `model.guide`, or a network
            in memory if the model is one. None: the model itself without its labels.
        settings: keys of the config's section sample, such as `steps=20, eta=0.5, seed=1`, and for a network with
            classes `labels="balanced"` or `labels=[0, 3]`, and `guidance=2`. In a run with another
            `batch_size` (the default is its default, 128), or on another device, bytes may differ in the last bit.
    """
    from taugrid.orchestrator.in_memory import sample_in_memory

    place = None if device is None else str(device)
    return sample_in_memory(_given(model), _given(guide), indices, shape, diffusion, settings, place)


_PATH = (str, PathLike)
_IN_WORDS = {str: "text", PathLike: "a path", Mapping: "a mapping", NoneType: "None"}


def _checked(name: str, value: Any, *kinds: type) -> Any:
    """The argument, with a path as text; `UserError` if it is of none of these types."""
    if not isinstance(value, kinds):
        kind = "None" if value is None else type(value).__name__
        raise UserError(f"{name} must be {' or '.join(_IN_WORDS[each] for each in kinds)}, not {kind}")
    return _given(value)


def _texts(name: str, value: Any) -> list[str]:
    """The argument as a list; one text counts as one item. `UserError` if it is not of texts."""
    texts = [value] if isinstance(value, str) else list(value) if isinstance(value, Iterable) else [value]
    if not all(isinstance(text, str) for text in texts):
        raise UserError(f"{name} must be a list of texts, not {value!r}")
    return texts


def _given(value: Any) -> Any:
    """A model or images as other layers take them: a path as text."""
    return fspath(value) if isinstance(value, PathLike) else value


def _assigned(overrides: Mapping[str, Any]) -> "Iterator[Override]":
    """Overrides as assignments: a section's mapping as one for each key, so that it is merged."""
    for key, value in overrides.items():
        if isinstance(value, Mapping) and "." not in key and key not in REPLACED_WHOLE:
            yield from ((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value
