"""From a config to a plan: the product of the grid, its models and its cells, with identities from content.

Ids are the first 10 hex digits of SHA-256 over canonical JSON of the values that differ from hashed defaults, so a new
key orphans no old run. Reads no clock, and from disk only the checkpoints, code and images that a config names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from taugrid.config import (
    DIFFUSION_DEFAULTS,
    GRID_SECTIONS,
    Config,
    Data,
    Diffusion,
    ModelSection,
    Sample,
    Section,
    Train,
    validate,
)
from taugrid.config.sample import GUIDANCE_KEYS, SAMPLER_KEYS
from taugrid.errors import MissingInput, UserError
from taugrid.grids import CELL_KEYS, Naming, plain_text, points, values_by_key
from taugrid.hashing import identity
from taugrid.jobs import CustomNetwork
from taugrid.orchestrator.plan.cells import Cell, Model, Plan
from taugrid.orchestrator.plan.conditions import (
    OF_GUIDANCE,
    ReadColumn,
    check_guidance,
    guidance_notes,
    label_rule,
    require_guided,
)
from taugrid.orchestrator.plan.sections import (
    KEYS_OUTSIDE_IDENTITY,
    UNSET,
    Fingerprint,
    check_classes,
    check_loss_weights,
    data_identity,
    diffusion_section,
    require_decoder_keys,
    require_whole_times,
    sample_identity,
    sample_section,
)
from taugrid.orchestrator.plan.sources import Absent, Custom, Loaded, ModelSource, Oracle, Trained
from taugrid.registry.samplers import CONSISTENCY, DEFAULT
from taugrid.words import counted, did_you_mean
from taugrid.workers.conditions import LabelRule, read_column
from taugrid.workers.data.load import content_fingerprint
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import Checkpoint, read_checkpoint, read_vae
from taugrid.workers.samplers.description import (
    SAMPLE_DEFAULTS,
    SamplerDescription,
    TrySampler,
    describe_sampler,
    describe_samplers,
    honoured,
    try_sampler,
)


class Lookups(NamedTuple):
    """Functions that tell a plan what is outside the config: what its keys name, and the content of training images. A
    run directory has its own, which know its records."""

    read_checkpoint: Callable[[str], Checkpoint] = read_checkpoint
    describe_network: Callable[[str, str | None, tuple[int, int, int], Diffusion, Data | None], CustomNetwork] = (
        custom_process.describe
    )
    fingerprint: Fingerprint = content_fingerprint
    try_sampler: TrySampler = try_sampler
    read_column: ReadColumn = read_column
    read_vae: Callable[[str, Vae], Vae] = read_vae
    assumed_timesteps: int | None = None
    """T of a checkpoint that is missing. None: the plan is to be run, so a missing file is an error."""


class Sections(NamedTuple):
    """The sections at one point of the grid that make a model and a cell."""

    data: Data
    model: ModelSection
    diffusion: Diffusion
    train: Train
    sample: Sample


class Placed(NamedTuple):
    """A point of the grid before its sampler was asked."""

    point: Mapping[str, Any]  # as in the config
    model: Model
    guide: Model | None
    vae: Vae | None
    sections: Sections  # as in the config, but for `diffusion`, which is resolved
    settings: Sample  # resolved, but for the keys that the sampler ignores


Planned = tuple[Placed, Cell, dict[str, Any]]
"""A point, its cell, without the names that the whole grid gives it, and the values of the keys that the cell's sampler
or guidance 1 ignores."""


def plan(config: Config, lookups: Lookups | None = None, dry: bool = False) -> Plan:
    """The models and cells of `config`, in the order of its grid. With `dry`, models whose files are not here are
    planned too (`Model.lacks`). Raises `UserError` (unknown grid key, bad value, S > T, a point named twice, a model
    without a source); `MissingInput` (a checkpoint, weights or training images are missing, unless `dry` is set)."""
    lookups = lookups or Lookups()
    lookups = lookups._replace(
        read_checkpoint=cache(lookups.read_checkpoint),
        describe_network=cache(lookups.describe_network),
        fingerprint=cache(lookups.fingerprint),
        read_column=cache(lookups.read_column),
        read_vae=cache(lookups.read_vae),
        assumed_timesteps=_assumed_timesteps(config) if dry else None,
    )
    mappings = config.grid or [{}]
    keys = dict.fromkeys([*(key for mapping in mappings for key in values_by_key(mapping)), *_unusual(config)])
    every = (point for mapping in mappings for point in points(mapping, Sample.model_fields))
    placed = [_placed(config, point, lookups) for point in every]
    _require_one_prediction(config, placed)
    cases = [(at.settings, at.model.diffusion) for at in placed]
    descriptions, modules = describe_samplers(cases, lookups.try_sampler)
    planned = [
        _planned(config, at, keys, described, lookups) for at, described in zip(placed, descriptions, strict=True)
    ]
    require_guided(config, any(cell.settings.is_guided for _, cell, _ in planned))
    names = Naming.of([cell.values for _, cell, _ in planned], Sample.model_fields)
    models: dict[str, Model] = {}
    cells: dict[str, Cell] = {}
    seen: set[tuple[str, str]] = set()
    for at, unnamed, ignored in planned:
        model = models.setdefault(at.model.id, replace(at.model, label=names.model(unnamed.values)))
        cell = replace(unnamed, model=model, naming=names)
        check_guidance(cell)
        key = cell.id, plain_text(ignored)
        if key in seen or cells.get(cell.id, cell).settings != cell.settings:  # or with another N
            outside = sorted(KEYS_OUTSIDE_IDENTITY & set(at.point))
            hint = f" ({', '.join(outside)} does not make a different cell)" if outside else ""
            if len(mappings) > 1:
                hint += " (each entry of the list is a grid of its own; to combine keys, write them in one entry)"
            raise UserError(f"grid: the point {_describe(at.point)} appears twice{hint}; remove one of them")
        seen.add(key)
        cells.setdefault(cell.id, cell)
    made, notes = tuple(cells.values()), (*_ignored(planned), *guidance_notes([*cells.values()]))
    return Plan(tuple(models.values()), made, notes, modules)


def _ignored(planned: Sequence[Planned]) -> Iterable[str]:
    """A line for each sampler that ignores a key of the grid, and one for guidance 1."""
    names = sorted({cell.settings.sampler for _, cell, _ in planned})
    groups = [
        ("guidance 1", [each for each in planned if not each[1].settings.is_guided], OF_GUIDANCE),
        *((name, [each for each in planned if each[1].settings.sampler == name], SAMPLER_KEYS) for name in names),
    ]
    for what, its, among in groups:
        named = {key for at, _, ignored in its for key in ignored if key in at.point and key in among}
        if named:
            number = counted(len({cell.id for _, cell, _ in its}), "cell")
            yield f"{what} ignores {' and '.join(sorted(named))}: {counted(len(its), 'point')} of the grid, {number}"


def _assumed_timesteps(config: Config) -> int:
    """A stand-in for T when the checkpoint that defines it is missing: the default, or larger if the grid needs it."""
    grids = [values_by_key(mapping) for mapping in config.grid]
    values = [value for grid in grids for key in ("steps", "spacing") for value in grid.get(key, ())]
    values += [config.sample.steps, config.sample.spacing, DIFFUSION_DEFAULTS.timesteps]
    numbers = [number for value in values for number in (value if isinstance(value, list) else [value])]
    return max(number for number in numbers if isinstance(number, int))


def _placed(config: Config, point: Mapping[str, Any], lookups: Lookups) -> Placed:
    sections = _sections_at(config, point)
    model = _model(sections, lookups)
    settings = sample_section(sections.sample, model.source.sample_keys(sections.sample))
    guide = _guide(sections, model, lookups) if settings.is_guided and sections.model.guide is not None else None
    model, vae = _with_vae(sections, model, lookups)
    if model.lacks is None:
        require_decoder_keys(sections.sample, model.decoder)
    return Placed(point, model, guide, vae, sections._replace(diffusion=model.diffusion), settings)


def _planned(
    config: Config, at: Placed, keys: Iterable[str], described: SamplerDescription, lookups: Lookups
) -> Planned:
    settings, source, name = honoured(at.settings, described.keys), at.model.source, at.settings.sampler
    if isinstance(source, Custom) and not source.spec.takes_fractions:
        require_whole_times(settings, described.times, source.name)
    for key in sorted(described.ignored_keys - at.point.keys()):
        value = getattr(config.sample, key)
        if value not in (None, getattr(SAMPLE_DEFAULTS, key)):
            raise UserError(
                f"sample.{key}: {plain_text(value)} has no effect with the sampler {name}; remove it or, for other "
                f"samplers of the grid, write it there: grid: [{{sampler: [{DEFAULT}], {key}: [{plain_text(value)}]}}, "
                f"{{sampler: [{name}]}}]"
            )
    ignored = {key: getattr(at.sections.sample, key) for key in described.ignored_keys}
    if not settings.is_guided:
        ignored |= {key: value for key in OF_GUIDANCE if (value := _value_at(at.sections, key)) is not None}
    resolved = at.sections._replace(sample=settings)
    values = {key: None if key in ignored else _value_at(resolved, key) for key in keys}
    network = f"the network of {'model.unet' if isinstance(source, Trained) else source.name}"
    if isinstance(source, Oracle):
        network = f"the {source.distribution} oracle"
    is_here = not isinstance(source, Absent)
    labels = label_rule(settings, source.conditions, network, lookups.read_column) if is_here else None
    return at, _cell(at.model, settings, values, described, at.guide, labels, at.vae), ignored


def _require_one_prediction(config: Config, placed: Sequence[Placed]) -> None:
    """Raise `UserError` if samplers alone decide what a network predicts, and do not agree."""
    found: dict[str, Diffusion] = {}
    for at in placed:
        is_open = at.point.get("diffusion.prediction", config.diffusion.prediction) is None
        if is_open and at.model.diffusion.process == "edm":
            first = found.setdefault(at.sections.model.model_dump_json(), at.model.diffusion)
            if first.prediction != at.model.diffusion.prediction:
                raise UserError(
                    f"diffusion.prediction is missing, and {CONSISTENCY} and the other samplers of the grid take "
                    "different networks of process: edm; set diffusion.prediction: consistency or edm"
                )


def _unusual(config: Config) -> list[str]:
    """The keys of how networks compute that differ from their defaults. Tables show them even without a grid."""
    keys = ("precision", "compile", "guidance", *GUIDANCE_KEYS)
    found = [key for key in keys if getattr(config.sample, key) != getattr(SAMPLE_DEFAULTS, key)]
    return [*found, *(key for key in CELL_KEYS if getattr(config.model, key.partition(".")[2]) is not None)]


def _describe(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items()) or "(the only one)"


def _sections_at(config: Config, point: Mapping[str, Any]) -> Sections:
    sections: dict[str, Section] = {name: getattr(config, name) for name in (*GRID_SECTIONS, "sample")}
    dumps: dict[str, dict[str, Any]] = {}  # of the sections that the point changes
    for key, value in point.items():
        name, path = _locate(key)
        node = dumps[name] = dumps.get(name) or sections[name].model_dump()
        for part in path[:-1]:
            if not isinstance(node.get(part), dict):
                node[part] = {}
            node = node[part]
        node[path[-1]] = value
    where = f"grid, at {_describe(point)}"
    changed = {name: validate(type(sections[name]), dump, f"{where}: {name}") for name, dump in dumps.items()}
    return Sections(**sections | changed)  # type: ignore[arg-type]  # each section keeps its type


def _locate(key: str) -> tuple[str, list[str]]:
    """The section and the path in it of a grid key."""
    head, *rest = key.split(".")
    if rest and head in GRID_SECTIONS:
        return head, rest
    if not rest and head in Sample.model_fields:
        return "sample", [head]
    if head == "sample":
        raise UserError(f"grid: write keys of sample without the section: {'.'.join(rest)!r}, not {key!r}")
    known = [*Sample.model_fields, *(f"{name}." for name in GRID_SECTIONS)]
    hint = did_you_mean(key, known, "a key of sample, or a dotted one such as diffusion.schedule")
    raise UserError(f"grid: unknown key {key!r} ({hint})")


def _model(sections: Sections, lookups: Lookups) -> Model:
    try:
        path, loaded = sections.model.checkpoint, None
        if path is not None:  # read first, because its files fill in `diffusion`
            loaded = Loaded(lookups.read_checkpoint(path))
        diffusion = _diffusion(sections, UNSET if loaded is None else loaded.checkpoint.diffusion)
        source = loaded or _source(sections, diffusion, lookups)
        return Model(identity(source.content(diffusion)), sections.data, diffusion, source)
    except MissingInput as error:
        if lookups.assumed_timesteps is None:
            raise
        return _absent(sections, str(error), lookups.assumed_timesteps)


def _absent(sections: Sections, reason: str, assumed_timesteps: int) -> Model:
    """A model whose files are missing. Its id is provisional."""
    data, model, defaults = sections.data, sections.model, UNSET
    if model.unet is not None:
        diffusion = _diffusion(sections)
        trained = Trained(data, {"absent": data.model_dump(mode="json")}, model.unet, sections.train)
        return Model(identity(trained.content(diffusion)), data, diffusion, trained, lacks=reason)
    if model.checkpoint is not None:
        no_process = sections.diffusion.process is None
        is_consistency = no_process and sections.sample.sampler == CONSISTENCY  # which no other checkpoint can have
        known = {"process": "edm"} if is_consistency else {"timesteps": assumed_timesteps}
        defaults = Diffusion.model_validate(known)
    diffusion = _diffusion(sections, defaults)
    absent = Absent(str(model.checkpoint or model.weights), data)
    return Model(identity(absent.content(diffusion)), data, diffusion, absent, lacks=reason)


def _diffusion(sections: Sections, theirs: Diffusion = UNSET) -> Diffusion:
    """`diffusion` resolved for its model. `theirs` is a checkpoint's."""
    model, process = sections.model, sections.diffusion.process
    is_ours = (model.unet or model.oracle) is not None
    if model.unet is not None and process == "flow":
        theirs = Diffusion(process="flow", timesteps=1000)  # its time embedding is made for such numbers
    diffusion = diffusion_section(sections.diffusion, theirs, None if is_ours else sections.sample.sampler)
    own = {"flow": "velocity", "edm": "edm"}.get(process or "ddpm", diffusion.prediction)
    if is_ours and diffusion.prediction != own:
        raise UserError(
            f"diffusion.prediction: with process: {process}, taugrid trains networks and knows optima that predict "
            f"{own} only, not {diffusion.prediction}; remove it, or give model.checkpoint or model.callable"
        )
    return diffusion


def _guide(sections: Sections, model: Model, lookups: Lookups) -> Model:
    """The network of `model.guide`. A folder without a scheduler is taken to be for the process of the model."""
    path = str(sections.model.guide)

    def read(path: str) -> Checkpoint:
        try:
            return lookups.read_checkpoint(path)
        except UserError as error:
            raise type(error)(str(error).replace("model.checkpoint", "model.guide")) from None

    with suppress(MissingInput):
        if read(path).diffusion == Diffusion():
            sections = sections._replace(diffusion=model.diffusion)
    guide = _model(sections._replace(model=ModelSection(checkpoint=path)), lookups._replace(read_checkpoint=read))
    content = guide.source.content(guide.diffusion)  # nobody decodes its samples, so it is the same with any VAE
    return replace(guide, id=identity({key: value for key, value in content.items() if key != "vae"}))


def _with_vae(sections: Sections, model: Model, lookups: Lookups) -> tuple[Model, Vae | None]:
    """A model, and the VAE of `model.vae`. If that is missing, the model's id is provisional too."""
    if (path := sections.model.vae) is None:
        return model, None
    reason = model.lacks
    if reason is None:
        if not isinstance(model.decoder, Vae):
            raise UserError(f"model.vae: {path} decodes latents, but the network samples pixels; remove the key")
        try:
            return model, lookups.read_vae(path, model.decoder)
        except MissingInput as error:
            if lookups.assumed_timesteps is None:
                raise
            reason = str(error)
    return replace(model, id=identity({"absent": path, "model": model.id}), lacks=reason), None


def _source(sections: Sections, diffusion: Diffusion, lookups: Lookups) -> ModelSource:
    data, model = sections.data, sections.model
    if model.oracle is not None:
        if data.name != model.oracle:
            raise UserError(f"model.oracle: {model.oracle} is the optimum for data.name: {model.oracle}; set both")
        if diffusion.process is None and diffusion.prediction != "epsilon":
            raise UserError(f"model.oracle predicts epsilon; remove diffusion.prediction: {diffusion.prediction}")
        return Oracle(model.oracle, data)
    if model.callable is not None:
        if diffusion.process is None:  # so that a grid over betas asks once
            kept = diffusion.model_dump(include={"timesteps", "prediction"})
            diffusion = DIFFUSION_DEFAULTS.model_copy(update=kept)
        return Custom(lookups.describe_network(model.callable, model.weights, data.image_shape, diffusion, data))
    if model.unet is not None:
        check_loss_weights(sections.train, diffusion)
        if model.unet.dropout and sections.train.most_workers > 1:
            raise UserError("model.unet.dropout needs train.workers: 1, because masks depend on the number of workers")
        try:
            identified = data_identity(data, lookups.fingerprint, model.unet.num_classes is not None)
        except UserError as error:
            raise MissingInput(str(error)) from None
        check_classes(data, model.unet, sections.train)
        return Trained(data, identified, model.unet, sections.train)
    raise UserError(
        "model: give unet: {...} to train a network, checkpoint: FOLDER to load one, callable: MODULE:FUNCTION for a "
        "custom one, or oracle: NAME"
    )


def with_settings(cell: Cell, changes: Mapping[str, Any]) -> Cell:
    """The cell of the same model with some settings changed. The changed settings are no longer among its axes."""
    changed = cell.settings.model_copy(update=dict(changes))
    settings = sample_section(changed, cell.model.source.sample_keys(changed))
    described = describe_sampler(settings, cell.model.diffusion)
    settings = honoured(settings, described.keys)
    values = {key: value for key, value in cell.values.items() if key not in changes}
    guide = cell.guide if settings.is_guided else None
    rule = cell.label_rule and replace(cell.label_rule, seed=settings.seed or 0)  # with labels it is set
    return replace(_cell(cell.model, settings, values, described, guide, rule, cell.vae), naming=cell.naming)


def _cell(
    model: Model,
    settings: Sample,
    values: Mapping[str, Any],
    described: SamplerDescription,
    guide: Model | None,
    labels: LabelRule | None,
    vae: Vae | None,
) -> Cell:
    others: dict[str, Any] = {} if guide is None else {"guide": guide.id}
    if vae is not None and vae.identity != getattr(model.decoder, "identity", None):
        others["vae"] = vae.identity
    content = {"model": model.id, "sample": sample_identity(settings, described.code, labels), **others}
    return Cell(
        identity(content), model, settings, values, described=described, guide=guide, label_rule=labels, vae=vae
    )


def _value_at(sections: Sections, key: str) -> Any:
    if key == "diffusion.process":  # ids know the usual values of these two as null
        return sections.diffusion.process or "ddpm"
    if key == "shift":
        return (sections.sample.shift or 1.0) if sections.diffusion.process == "flow" else None
    name, path = _locate(key)
    value: Any = getattr(sections, name).model_dump(mode="json")
    for part in path:
        value = value.get(part) if isinstance(value, dict) else None
    return value
