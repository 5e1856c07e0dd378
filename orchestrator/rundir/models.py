"""The networks, extractor and reference of a run: where they are, and records in case their files are removed later."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from taugrid.config import Config, Data, Diffusion
from taugrid.config.sample import LabelColumn
from taugrid.errors import MissingInput, UserError
from taugrid.eval.features.resolve import chosen, restored
from taugrid.eval.reference import Reference
from taugrid.eval.sources import ImageSet
from taugrid.hashing import canonical_json, json_sha256
from taugrid.jobs import CustomNetwork, NetworkSpec
from taugrid.orchestrator.plan.cells import Cell, Model
from taugrid.orchestrator.plan.scoring import Scoring, extractor
from taugrid.orchestrator.plan.sections import NOT_IDENTITY
from taugrid.orchestrator.plan.trust import WITHOUT_CODE
from taugrid.orchestrator.rundir.paths import Paths
from taugrid.registry.extractors import ExtractorSpec
from taugrid.storage import read_json, write_json
from taugrid.workers.conditions import Column, read_column
from taugrid.workers.data.load import content_fingerprint
from taugrid.workers.diffusion.decoder import Decoder, Vae
from taugrid.workers.network import custom_process
from taugrid.workers.network.checkpoint import Checkpoint, read_checkpoint, read_vae, weights_file, weights_sha256
from taugrid.workers.samplers.description import Case, Tried, honoured, try_sampler

OUTSIDE = NOT_IDENTITY["sample"]  # keys of `sample` that change no image


REFERENCE = TypeAdapter(Reference)  # as plan.json has it

OF_DECODING = {"vae_precision", "decode_batch", "rounding"}  # keys of `sample` that change no latent


class ModelRecords(Paths):
    """models/: trained networks, and the records of loaded and custom ones. plan.json: how cells are scored."""

    runs_code = True
    """Whether the custom code that a config names may be run. If not, its description comes from the records."""

    downloads = True
    """Whether files that a config names may be downloaded. If not, earlier downloads and records are used."""

    def read_provenance(self) -> dict[str, Any]:
        """The content of provenance.json; empty if there is none, or if it is not an object."""
        content = read_json(self.provenance, self.storage)
        return content if isinstance(content, dict) else {}

    def weights_file(self, model: Model, weights: str) -> Path:
        """The file of a model's weights, or the record that stands for it."""
        return model.source.weights_file(self.model_folder(model), weights)

    def network(self, model: Model, weights: str) -> NetworkSpec:
        """The network that a worker loads; `UserError` if a custom network no longer exists."""
        return model.source.network(self.model_folder(model), weights, self.storage)

    def guide(self, cell: Cell) -> NetworkSpec | None:
        """The network that guides a cell's; None: there is none. Its averaged weights, whatever the cell's are."""
        return None if cell.guide is None else self.network(cell.guide, "ema")

    def record_model(self, model: Model) -> None:
        """Write models/<id>/model.json: the description of a loaded or custom model, in case its files are removed."""
        record = model.source.record()
        if record is not None:
            write_json(self.model_record(model.id), record, self.storage)

    def model_records(self) -> list[dict[str, Any]]:
        """The records of all loaded and custom models; those of the last session come first."""
        files = self.storage.list(self.models, str(self.model_record("*").relative_to(self.models)))
        last = self.read_provenance().get("models") or {}
        records = [
            read_json(file, self.storage) for file in sorted(files, key=lambda file: file.parent.name not in last)
        ]
        return [record for record in records if isinstance(record, dict)]

    def describe_network(
        self,
        name: str,
        weights: str | None,
        image_shape: tuple[int, int, int],
        diffusion: Diffusion,
        data: Data | None = None,
    ) -> CustomNetwork:
        """The description of a custom network (`custom_process.describe`), or the recorded one if it can't be used."""
        path = custom_process.weights_path(weights)
        wanted = {"callable": name, "weights": path and str(path), "image_shape": list(image_shape)}
        records = [record for record in self.model_records() if wanted.items() <= record.items()]
        try:
            if not self.runs_code:
                raise UserError(WITHOUT_CODE)
            return custom_process.describe(name, weights, image_shape, diffusion, data)
        except UserError as error:
            if records:
                return replace(custom_process.restored(records[0], image_shape), unusable=str(error))
            if self.runs_code:
                raise
            raise UserError(f"model.callable: {self.root} has no record of {name}, and {WITHOUT_CODE}") from None

    def try_sampler(self, name: str, cases: Sequence[Case]) -> Tried:
        """See `samplers.description.try_sampler`; if no code may be run, what plan.json records of these cases."""
        if self.runs_code:
            return try_sampler(name, cases)
        recorded, keys = {}, set[str]()
        with suppress(KeyError, TypeError, AttributeError):  # there is no plan, or taugrid did not write it
            plan: Any = read_json(self.plan, self.storage)
            diffusions = {model["id"]: model["diffusion"] for model in plan["models"]}
            for cell in plan["cells"]:
                if cell["settings"].get("sampler") == name:
                    keys |= set(cell["sampler"]["keys"])
                    recorded[_case(cell["settings"], diffusions[cell["model"]])] = cell["sampler"]
        wanted = [_case(honoured(settings, keys).recorded, diffusion.recorded) for settings, diffusion in cases]
        if not recorded.keys() >= set(wanted):
            if ":" not in name:  # an installed package's code is not the config's
                return try_sampler(name, cases)
            raise UserError(f"sample.sampler: {self.plan} does not have all cells of {name}, and {WITHOUT_CODE}")
        return Tried([recorded[case] for case in wanted])

    def extractor(self, config: Config) -> ExtractorSpec:
        """The feature extractor that a config means; a custom one as recorded if its code may not be run. Raises
        `UserError` if there is none, its weights are missing, or a custom one is not recorded."""
        name = config.evaluate.extractor
        if self.runs_code or name is None or ":" not in name:
            return extractor(config, self.downloads)
        recorded = self.recorded_evaluation()
        if recorded.get("image_shape") == list(config.data.image_shape):
            with suppress(KeyError, TypeError):  # keys are missing or unknown: not written by taugrid
                if (spec := restored(recorded["extractor"])).name == name:
                    return replace(spec, precision=config.evaluate.precision)
        raise UserError(
            f"evaluate.extractor: {self.root} has no record of {name}, and {WITHOUT_CODE}; "
            "`taugrid evaluate` writes one"
        )

    def recorded_scoring(self, config: Config) -> Scoring | None:
        """How the last session that scored did it; reads neither reference nor weights. None: not as `config` asks."""
        recorded = self.recorded_evaluation()
        if recorded.get("asked") != _asked(config):
            return None
        with suppress(KeyError, TypeError, ValueError):  # not written by taugrid
            reference, given = REFERENCE.validate_python(recorded["reference"]), config.reference
            if isinstance(given, Data) and isinstance(reference.given, ImageSet):  # it may be somewhere else now
                reference = Reference(replace(reference.given, given=given))
            return Scoring(config, restored(recorded["extractor"]), reference)
        return None

    def recorded_evaluation(self) -> dict[str, Any]:
        """What plan.json says on how cells are scored (`evaluation`); empty before the first session that scores."""
        plan = read_json(self.plan, self.storage)
        found = plan.get("evaluation") if isinstance(plan, dict) else None
        return found if isinstance(found, dict) else {}

    def fingerprint(self, data: Data, of: Literal["images", "labels"] = "images") -> str:
        """SHA-256 of a data set's images or labels; if they are gone, as recorded when a model was trained on them."""
        try:
            return content_fingerprint(data if self.downloads else data.model_copy(update={"download": False}), of)
        except UserError:
            recorded = self.read_provenance().get("dataset") or {}
            section = data.model_dump(mode="json", exclude={"download"})
            key = {"images": "sha256", "labels": "labels_sha256"}[of]
            if key in recorded and section.items() <= recorded.items():
                return str(recorded[key])
            raise

    def read_column(self, section: LabelColumn) -> Column:
        """The labels in a Parquet file; if it is gone, their hash as plan.json has it."""
        try:
            return read_column(section)
        except MissingInput:
            plan: Any = read_json(self.plan, self.storage)
            with suppress(KeyError, TypeError, AttributeError):  # there is no plan, or taugrid did not write it
                for cell in plan["cells"]:
                    if cell["settings"].get("labels") == section.model_dump():
                        return Column(cell["labels"][0]["column_sha256"], None)
            raise

    def read_checkpoint(self, path: str) -> Checkpoint:
        """The files of a loaded model; if they are gone, as recorded when it was sampled. For a repository on the hub,
        the commit stays the one that was sampled first."""
        record = next((record for record in self.model_records() if record.get("path") == path), None)
        recorded = None if record is None else Checkpoint.restored(record)
        try:
            return read_checkpoint(path, recorded.commit if recorded else None, self.downloads)
        except UserError:
            if recorded is None:
                raise
            return recorded

    def read_vae(self, path: str, of: Vae) -> Vae:
        """The VAE of `model.vae`, see `checkpoint.read_vae`; if it is gone, as plan.json has it, and on the hub the
        commit that is there."""
        plan: Any = read_json(self.plan, self.storage)
        recorded = None
        with suppress(KeyError, TypeError, AttributeError):  # there is no plan, or taugrid did not write it
            vaes = [Vae.restored(cell["vae"]) for cell in plan["cells"] if "vae" in cell]
            shapes = of.network_shape, of.picture_shape
            recorded = next((v for v in vaes if (v.path, v.network_shape, v.picture_shape) == (path, *shapes)), None)
        try:
            return read_vae(path, of, None if recorded is None else recorded.commit, self.downloads)
        except UserError:
            if recorded is None:
                raise
            return recorded

    def decoder(self, cell: Cell) -> Decoder:
        """What a worker makes pictures with; `UserError` if the files of a VAE are gone."""
        if isinstance(vae := cell.decoder, Vae):
            try:
                weights_sha256(weights_file(Path(vae.saved.folder)))
            except UserError as error:
                raise type(error)(f"the VAE of {vae.path} is gone: {error}") from None
        return cell.decoder

    def is_ready(self, model: Model) -> bool:
        """Whether the model can be sampled: it is trained, or needs no training."""
        return model.source.is_ready(self.model_folder(model), self.storage)

    def weights_sha256(self, model: Model, weights: str) -> str:
        """SHA-256 of a model's weights, or of the record in their place; `UserError` if there is no such file."""
        return model.source.weights_sha256(self.model_folder(model), weights, self.storage)

    def sample_metadata(self, cell: Cell) -> dict[str, Any]:
        """The JSON blob in every sample file of a cell. It does not depend on the number of samples. `latents`, where
        they are kept, is the hash of all that determines them: cells that only differ in how they are decoded have the
        same."""
        block, conditions = cell.sampler_block, cell.conditions_block
        settings = {key: value for key, value in cell.settings.recorded.items() if key not in OUTSIDE}
        settings = settings if cell.label_rule is None else {**settings, "labels": cell.label_rule.said}
        undecoded = {
            "model": cell.model.id,
            "settings": settings,
            "diffusion": cell.model.diffusion.recorded,
            "tau": list(cell.tau),
            **({} if block is None else {"sampler": block | {"arguments": cell.sampler_description.arguments}}),
            **({} if conditions is None else {"conditions": conditions}),
            "weights_sha256": self.weights_sha256(cell.model, cell.settings.weights),
        }
        decoder, kept = {} if cell.decoder_block is None else {"decoder": cell.decoder_block}, dict[str, str]()
        if cell.settings.keep_latents:
            of_latents = {key: value for key, value in settings.items() if key not in OF_DECODING}
            kept["latents"] = json_sha256({**undecoded, "settings": of_latents})
        return {"cell": cell.id, **undecoded, **decoder, **kept}


def evaluation(scoring: Scoring) -> dict[str, Any]:
    """What plan.json records of a scoring: enough to find scores without the reference and the extractor's code."""
    return {
        "asked": _asked(scoring.config),
        "image_shape": scoring.config.data.image_shape,
        "reference": REFERENCE.dump_python(scoring.reference, mode="json"),
        "extractor": asdict(scoring.extractor),
    }


def _asked(config: Config) -> str:
    """A hash of what a config says on how cells are scored."""
    evaluate, given = config.evaluate, config.reference
    reference = given if isinstance(given, str) else given.model_dump(mode="json", exclude=NOT_IDENTITY["data"])
    extractor = [chosen(evaluate.extractor, config.data.name), evaluate.weights, evaluate.precision]
    return json_sha256([reference, extractor, list(config.data.image_shape), evaluate.metric_settings.as_dict()])


def _case(settings: Mapping[str, Any], diffusion: Mapping[str, Any]) -> str:
    """What a sampler's answer depends on, as plan.json has it."""
    return canonical_json([{key: value for key, value in settings.items() if key not in OUTSIDE}, diffusion])
