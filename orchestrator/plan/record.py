"""plan.json: the plan of a run as its last session recorded it, so that read-only commands need not plan again.

Sections are written without keys at the defaults that later versions added (`Section.recorded`), as in hashes and in
the metadata of sample files.
"""

from collections.abc import Mapping
from typing import Any

from taugrid.config import Data, Diffusion, Sample, Section, Train, Unet
from taugrid.grids import Naming
from taugrid.hashing import checked_identity
from taugrid.orchestrator.plan.cells import Cell, Model, Plan
from taugrid.orchestrator.plan.sources import Custom, Loaded, ModelSource, Oracle, Trained
from taugrid.orchestrator.plan.trust import WITHOUT_CODE
from taugrid.registry.samplers import DEFAULT, SAMPLERS
from taugrid.words import with_controls
from taugrid.workers.conditions import LabelRule
from taugrid.workers.diffusion.decoder import Vae
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import Checkpoint
from taugrid.workers.samplers.description import SamplerDescription


def to_json(plan: Plan) -> dict[str, Any]:
    """A plan as plain data, with what was read from its checkpoints, code and data. No model may be pending."""
    return {
        "models": [_model_to_json(model) for model in plan.models],
        "cells": [
            {
                "id": cell.id,
                "model": cell.model.id,
                "settings": cell.settings.recorded,
                "values": dict(cell.values),
                **({} if cell.settings.sampler in SAMPLERS else {"sampler": cell.sampler_description._asdict()}),
                **({} if cell.guide is None else {"guide": cell.guide.id}),
                **({} if cell.vae is None else {"vae": cell.vae.recorded}),
                **({} if cell.label_rule is None else {"labels": [cell.label_rule.said, cell.label_rule.classes]}),
            }
            for cell in plan.cells
        ],
        **({"guides": [_model_to_json(guide) for guide in plan.guides]} if plan.guides else {}),
    }


def from_json(value: Mapping[str, Any]) -> Plan:
    """The plan that `to_json` recorded. Custom code can't be run from it. Raises `KeyError`, `TypeError`, `ValueError`,
    `UserError` if `to_json` of this version would not write such a value."""
    if with_controls(value) is not None:
        raise ValueError("a text has a control character")
    names = Naming.of([cell["values"] for cell in value["cells"]], Sample.model_fields)
    # Reversed, since the last entry of a key wins: a model's label is that of its first cell.
    labels = {cell["model"]: names.model(cell["values"]) for cell in reversed(value["cells"])}
    models = {model["id"]: _model_from_json(model, labels[model["id"]]) for model in value["models"]}
    guides = {model["id"]: _model_from_json(model) for model in value.get("guides", ())}
    cells = [
        Cell(
            checked_identity(cell["id"]),
            models[cell["model"]],
            Sample.model_validate(cell["settings"]),
            cell["values"],
            names,
            None
            if cell["settings"].get("sampler", DEFAULT) in SAMPLERS
            else SamplerDescription.restored(cell["sampler"]),
            guides[cell["guide"]] if "guide" in cell else None,
            LabelRule(cell["labels"][0], cell["settings"]["seed"], cell["labels"][1]) if "labels" in cell else None,
            Vae.restored(cell["vae"]) if "vae" in cell else None,
        )
        for cell in value["cells"]
    ]
    return Plan(tuple(models.values()), tuple(cells))


def _model_to_json(model: Model) -> dict[str, Any]:
    return {
        "id": model.id,
        "data": model.data.model_dump(mode="json"),
        "diffusion": model.diffusion.recorded,
        "source": _source_to_json(model.source),
    }


def _model_from_json(value: Mapping[str, Any], label: str = "") -> Model:
    diffusion = Diffusion.model_validate({**Diffusion.later_keys, **value["diffusion"]})
    source = _source_from_json(value["source"])
    return Model(checked_identity(value["id"]), Data.model_validate(value["data"]), diffusion, source, label)


def _source_to_json(source: ModelSource) -> dict[str, Any]:
    match source:
        case Trained(data, data_identity, unet, train):
            sections = {"data": data, "unet": unet, "train": train}
            dumped = {name: section.recorded for name, section in sections.items()}
            return {"kind": "trained", "data_identity": dict(data_identity), **dumped}
        case Loaded(checkpoint):
            return {"kind": "loaded", **checkpoint.recorded}
        case Custom(spec):
            return {"kind": "custom", **spec.recorded}
        case Oracle(distribution, data):
            return {"kind": "oracle", "distribution": distribution, "data": data.model_dump(mode="json")}
        case _:
            raise TypeError(f"a plan with {source} cannot be recorded")


def _source_from_json(value: Mapping[str, Any]) -> ModelSource:
    fields = {key: inner for key, inner in value.items() if key != "kind"}
    match value["kind"]:
        case "trained":
            sections: dict[str, type[Section]] = {"data": Data, "unet": Unet, "train": Train}
            return Trained(**fields | {name: kind.model_validate(fields[name]) for name, kind in sections.items()})
        case "loaded":
            return Loaded(Checkpoint.restored(fields))
        case "custom":
            shape = tuple(fields["image_shape"])
            return Custom(custom_process.restored(fields | {"unusable": fields["unusable"] or WITHOUT_CODE}, shape))
        case "oracle":
            return Oracle(fields["distribution"], Data.model_validate(fields["data"]))
        case other:
            raise ValueError(f"unknown kind of model: {other}")
