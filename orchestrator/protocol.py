"""What a score is of, spelled out: everything that must match for two numbers to be comparable."""

from dataclasses import dataclass
from typing import Any

from eval.extractor_names import ExtractorSpec
from eval.statistics import kid_subset_size
from orchestrator.config import Config, Data
from orchestrator.errors import UserError
from orchestrator.extractor import extractor
from orchestrator.grid import Cell, Plan, identity
from orchestrator.versions import versions
from workers import data as datasets

VERSIONS = ("taugrid", "torch", "torch-fidelity", "numpy", "scipy")


@dataclass(frozen=True)
class Reference:
    """The real images that samples are compared with, known by their content."""

    data: Data
    num_images: int
    sha256: str

    @property
    def folder(self) -> str:
        """Name of the folder of its features, beside those of the cells."""
        return f"reference-{self.sha256[:10]}"


@dataclass(frozen=True)
class Evaluation:
    """How the cells of a run are scored."""

    config: Config
    extractor: ExtractorSpec
    reference: Reference

    @property
    def extractor_folder(self) -> str:
        """Name of the folder of features: the extractor and the first 8 digits of its weights' hash."""
        return f"{self.extractor.name}-{self.extractor.weights_sha256[:8]}"

    def settings(self, num_samples: int) -> dict[str, Any]:
        """The metrics that can be given at N, with their settings."""
        evaluate = self.config.evaluate
        metrics = sorted(set(evaluate.metrics) - set(self.not_given(num_samples)))
        settings: dict[str, Any] = {"metrics": metrics, "seed": evaluate.seed}
        if "isc" in metrics:
            settings["isc_splits"] = evaluate.isc_splits
        if "kid" in metrics:
            size = kid_subset_size(evaluate.kid_subset_size, num_samples, self.reference.num_images)
            settings |= {"kid_subsets": evaluate.kid_subsets, "kid_subset_size": size}
        return settings

    def not_given(self, num_samples: int) -> dict[str, str]:
        """Metric -> why it can't be given, for metrics that were asked for."""
        evaluate = self.config.evaluate
        reasons: dict[str, str] = {}
        if num_samples < 2:
            reasons |= dict.fromkeys(("fid", "kid"), "it needs at least 2 samples")
        if not self.extractor.logits_layer:
            reasons["isc"] = f"{self.extractor.name} has no layer of logits"
        elif num_samples < evaluate.isc_splits:
            reasons["isc"] = f"{num_samples} samples can't be divided into {evaluate.isc_splits} splits"
        return {metric: reason for metric, reason in reasons.items() if metric in evaluate.metrics}

    def id(self, cell: Cell) -> str:
        """Names a cell's score file: what was measured against what, without versions (an upgrade keeps old scores)."""
        n = cell.settings.num_samples
        extractor = {"name": self.extractor.name, "weights": self.extractor.weights_sha256}
        return identity({"reference": self.reference.sha256, "N": n, "extractor": extractor, **self.settings(n)})

    def protocol(self, cell: Cell) -> dict[str, Any]:
        """The fields of a row's protocol."""
        shape = "x".join(str(side) for side in cell.model.image_shape)
        return {
            "reference": {
                "dataset": self.reference.data.name,
                "split": self.reference.data.split,
                "num_images": self.reference.num_images,
                "preprocessing": f"8 bits, {shape}",
                "sha256": self.reference.sha256,
            },
            "num_samples": cell.settings.num_samples,
            "weights": cell.settings.weights,
            "tau": list(cell.tau),
            "clip": cell.settings.clip,
            "precision": f"{cell.settings.precision}, no TF32",
            "rounding": "8 bits, to nearest",
            "extractor": {
                "name": self.extractor.name,
                "weights_sha256": self.extractor.weights_sha256,
                "feature_layer": self.extractor.feature_layer,
                "logits_layer": self.extractor.logits_layer,
            },
            **self.settings(cell.settings.num_samples),
            "versions": versions(VERSIONS),
        }


def check_shapes(plan: Plan) -> None:
    """Raise `UserError` if a model makes images of another shape than its data set's."""
    for model in plan.models:
        if model.image_shape != model.data.image_shape:
            raise UserError(
                f"data.name: {model.data.name} has images of {model.data.image_shape} (channels, height, width), but "
                f"the model makes {model.image_shape}; choose its data, or only `taugrid sample` it"
            )


def evaluation(config: Config, plan: Plan) -> Evaluation:
    """How `config` scores the cells of `plan`; opens the reference and the extractor's weights, so that what is wrong
    with them is said before any accelerator time.

    Raises:
        UserError: unknown extractor, missing weights, images of another shape than the reference's.
    """
    check_shapes(plan)
    data = config.data
    spec = extractor(config)
    images = datasets.load_images(data)
    return Evaluation(config, spec, Reference(data, len(images), datasets.fingerprint(images)))
