"""Where a model comes from, one class each. It knows the model's identity, network, weights and description.

The argument `folder` is always the model's folder in the run directory, models/<id>, and `storage` the run's.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from taugrid.config import Data, Diffusion, Sample, Train, Unet
from taugrid.errors import UserError, WeightsChanged
from taugrid.hashing import SourceFile
from taugrid.jobs import A_FUNCTION, NEEDS_MODULE, Conditions, CustomNetwork, NetworkSpec, OracleNetwork, SavedNetwork
from taugrid.orchestrator.plan.sections import NOT_IDENTITY, TRAIN_DEFAULTS, differing_keys, diffusion_identity
from taugrid.storage import LOCAL, Storage
from taugrid.words import short_path
from taugrid.workers.diffusion.decoder import Decoder, Identity, Vae
from taugrid.workers.network import checkpoint, custom_process
from taugrid.workers.network.checkpoint import Checkpoint

RECORD = "model.json"  # the file in a model's folder that records what a loaded or custom model was when it was sampled

TRAINED_WEIGHTS = f"unet/{checkpoint.WEIGHTS_FILE}"
"""The file of a trained model that says that the model is complete: it is written last."""


class ModelSource(ABC):
    """The interface of all, with the defaults of a model that has no file of weights and no shape of its own."""

    data: Data

    is_announced: ClassVar[bool] = False
    """Whether a run says its description first: it has settings that the config does not show."""

    @property
    def name(self) -> str:
        """The network's name in comparisons with published numbers."""
        return "trained here"

    @property
    def decoder(self) -> Decoder:
        return Identity(self.data.image_shape)

    @property
    def conditions(self) -> Conditions | None:
        """The labels that the network takes; None: it is unconditional."""
        return None

    @abstractmethod
    def content(self, diffusion: Diffusion) -> dict[str, Any]:
        """The values whose hash is the model's id."""

    @property
    def architecture(self) -> dict[str, Any] | None:
        """The values that decide how long an image takes, whatever the weights; None: they are unknown."""
        return None

    @abstractmethod
    def network(self, folder: Path, weights: str, storage: Storage = LOCAL) -> NetworkSpec:
        """What a worker loads; `weights` is `ema` or `raw`. `UserError` if it is gone."""

    def weights_file(self, folder: Path, weights: str) -> Path:
        """The file of weights, or the record that stands for it."""
        return folder / RECORD

    def weights_sha256(self, folder: Path, weights: str, storage: Storage = LOCAL) -> str:
        """SHA-256 of the weights, in hex; `UserError` if there is no such file."""
        return checkpoint.weights_sha256(self.weights_file(folder, weights), storage)

    def sample_keys(self, settings: Sample) -> Mapping[str, Any]:
        """Keys of `sample` that the model sets itself; `UserError` if it has no weights of the kind asked for."""
        return {}

    def is_ready(self, folder: Path, storage: Storage = LOCAL) -> bool:
        """Whether the model can be sampled now."""
        return True

    def record(self) -> dict[str, Any] | None:
        """The content of `RECORD`, in case the model's files are gone later; None: nothing to record."""
        return None

    @property
    def modules(self) -> Collection[SourceFile]:
        """The user's source files that a worker imports to load the network."""
        return ()

    @abstractmethod
    def description(self, diffusion: Diffusion, settings: Collection[Sample]) -> str:
        """The source in a line, with what cells of these settings take from it."""

    def warning(self, diffusion: Diffusion) -> str | None:
        """A setting of the config that the network was not made for."""
        return None

    def relation_to(self, data: Data) -> str:
        """What the images of `data.held_out` are to the network, as the end of a sentence."""
        return "some of which the loaded model may have been trained on"


@dataclass(frozen=True)
class Trained(ModelSource):
    data: Data
    data_identity: Mapping[str, Any]  # identifies the images it is trained on
    unet: Unet
    train: Train

    @property
    def conditions(self) -> Conditions | None:
        classes = self.unet.num_classes
        return None if classes is None else Conditions(classes, classes if self.train.label_dropout else None)

    @property
    def parameters(self) -> int | None:
        """The number of the network's parameters; None if a level is of a kind with skips, which are not counted."""
        conditions = self.conditions
        labels = 0 if conditions is None else conditions.classes + (conditions.null_label is not None)
        return count_parameters(self.unet, self.data.image_shape[0], labels)

    def content(self, diffusion: Diffusion) -> dict[str, Any]:
        return {
            "data": self.data_identity,
            "unet": differing_keys(self.unet, Unet()),
            "diffusion": diffusion_identity(diffusion),
            "train": differing_keys(self.train, TRAIN_DEFAULTS, NOT_IDENTITY["train"]),
        }

    @property
    def architecture(self) -> dict[str, Any]:
        return {"unet": differing_keys(self.unet, Unet()), "shape": list(self.data.image_shape)}

    def network(self, folder: Path, weights: str, storage: Storage = LOCAL) -> NetworkSpec:
        return checkpoint.saved_network(self.weights_file(folder, weights).parent, storage)

    def weights_file(self, folder: Path, weights: str) -> Path:
        return folder / ("unet_raw" if weights == "raw" else "unet") / checkpoint.WEIGHTS_FILE

    def is_ready(self, folder: Path, storage: Storage = LOCAL) -> bool:
        return storage.exists(folder / TRAINED_WEIGHTS)

    def description(self, diffusion: Diffusion, settings: Collection[Sample]) -> str:
        return "trained here"

    def relation_to(self, data: Data) -> str:
        if data.held_out != data:
            return "held out from training"
        return "which the network was trained on (data.split: train holds some out)"


@dataclass(frozen=True)
class Loaded(ModelSource):
    is_announced: ClassVar[bool] = True

    checkpoint: Checkpoint

    @property
    def decoder(self) -> Decoder:
        return self.checkpoint.decoder

    @property
    def name(self) -> str:
        return self.checkpoint.path

    @property
    def conditions(self) -> Conditions | None:
        return self.checkpoint.conditions

    def content(self, diffusion: Diffusion) -> dict[str, Any]:
        loaded = self.checkpoint
        return {
            "weights": loaded.weights_sha256,
            "unet" if loaded.network == checkpoint.UNET else loaded.network: loaded.unet_config,
            "diffusion": diffusion_identity(diffusion),
            **({} if loaded.vae is None else {"vae": loaded.vae.identity}),
        }

    @property
    def architecture(self) -> dict[str, Any]:
        loaded = self.checkpoint
        vae = {} if loaded.vae is None else {"vae": [loaded.vae.saved.kind, loaded.vae.saved.config_sha256]}
        return {"network": loaded.network, "config": checkpoint.config_sha256(loaded.unet_config), **vae}

    def sample_keys(self, settings: Sample) -> Mapping[str, Any]:
        if settings.weights == "raw" and self.checkpoint.raw_folder is None:
            raise UserError(
                f"sample.weights is raw, but {self.checkpoint.path} has no unet_raw/ (pipelines that taugrid trained "
                "have it); set sample.weights: ema"
            )
        return self.checkpoint.sample

    def network(self, folder: Path, weights: str, storage: Storage = LOCAL) -> NetworkSpec:
        digest, place = self.weights_sha256(folder, weights), self.weights_file(folder, weights).parent
        config = checkpoint.config_sha256(self.checkpoint.unet_config)
        return SavedNetwork(str(place), digest, config, conditions=self.conditions, kind=self.checkpoint.network)

    def weights_sha256(self, folder: Path, weights: str, storage: Storage = LOCAL) -> str:
        """SHA-256 of the weights; `UserError` if there are none, or others than the model's id is a hash of."""
        found = super().weights_sha256(folder, weights)
        if weights == "ema" and found != self.checkpoint.weights_sha256:
            raise WeightsChanged(
                f"{self.weights_file(folder, weights)} has been replaced: SHA-256 {found[:12]}, planned with "
                f"{self.checkpoint.weights_sha256[:12]}",
                "put the old file back, or run the command again",
            )
        return found

    def weights_file(self, folder: Path, weights: str) -> Path:
        place = self.checkpoint.raw_folder if weights == "raw" else self.checkpoint.unet_folder
        assert place is not None, "a plan has no raw weights of a checkpoint without them"
        return checkpoint.weights_file(Path(place))

    def record(self) -> dict[str, Any] | None:
        return self.checkpoint.recorded

    def description(self, diffusion: Diffusion, settings: Collection[Sample]) -> str:
        loaded = self.checkpoint
        trained = {key: value for key, value in loaded.diffusion.model_dump().items() if value is not None}
        changed = [key for key, value in trained.items() if getattr(diffusion, key) != value]
        sample = Sample(**loaded.sample)
        clip = (None if sample.clip == "none" else sample.clip_in_words) or "none"
        offsets = [str(cell.steps_offset) for cell in settings if cell.spacing == "leading"]  # others ignore it
        offset = str(sample.steps_offset or 0)
        shift, shifts = f"{sample.shift or 1:g}", [f"{cell.shift or 1:g}" for cell in settings]
        phrases = [
            diffusion.in_words,
            "predicts epsilon" if diffusion.prediction == "epsilon" else "",
            "" if self.conditions is None else self.conditions.in_words,
            f"diffusion.{', '.join(changed)} by the config" if changed else "",
            f"clip {_unless_overridden(clip, (cell.clip_in_words for cell in settings))}",
            f"shift {_unless_overridden(shift, shifts)}" if {shift, *shifts} != {"1"} else "",
            f"steps_offset {_unless_overridden(offset, offsets)}" if offsets and {offset, *offsets} != {"0"} else "",
        ]
        if learned := ", ".join(f"{key} {value:g}" for key, value in sample.sampler_options.items()):
            phrases.append(f"lcm's {learned}")
        origin = "its scheduler" if loaded.sample else "no scheduler, so defaults"
        at = f" at commit {loaded.commit[:10]}" if loaded.commit else ""
        parts = "" if loaded.vae is None else f"; {_in_words(loaded, loaded.vae)}"
        return f"loaded {short_path(loaded.path)}{at} ({origin}: {', '.join(filter(None, phrases))}{parts})"

    def warning(self, diffusion: Diffusion) -> str | None:
        timesteps = self.checkpoint.diffusion.timesteps
        if timesteps is None or diffusion.timesteps == timesteps:
            return None
        return (
            f"diffusion.timesteps is {diffusion.timesteps}, but {self.checkpoint.path} was trained with {timesteps}; "
            "remove the key unless you mean that"
        )


def _in_words(loaded: Checkpoint, vae: Vae) -> str:
    """The parts of a latent pipeline, with the shapes of what they make."""
    latent, picture = ("x".join(map(str, shape)) for shape in (vae.network_shape, vae.picture_shape))
    a = "an" if vae.saved.kind.startswith("A") else "a"
    dropped = ", whose learned sigma is dropped" if loaded.drops_sigma else ""
    return (
        f"latents of {latent} by a {loaded.network}{dropped}, decoded to {picture} by {a} {vae.saved.kind} "
        f"(scaling factor {vae.scaling_factor:g})"
    )


def _unless_overridden(loaded: str, configured: Iterable[str | None]) -> str:
    """A setting of a loaded pipeline, followed by the cells' settings if any cell has a different one."""
    used = [value for value in dict.fromkeys(configured) if value is not None]
    return loaded if set(used) <= {loaded} else f"{loaded} ({', '.join(used)} by the config)"


@dataclass(frozen=True)
class Custom(ModelSource):
    """A network in user code: `model.callable`."""

    is_announced: ClassVar[bool] = True

    spec: CustomNetwork

    @property
    def decoder(self) -> Decoder:
        return Identity(self.spec.image_shape)

    @property
    def name(self) -> str:
        return self.spec.callable

    @property
    def modules(self) -> Collection[SourceFile]:
        return self.spec.files

    @property
    def conditions(self) -> Conditions | None:
        return self.spec.conditions

    def content(self, diffusion: Diffusion) -> dict[str, Any]:
        return {
            "callable": self.spec.callable,
            "source": self.spec.source_sha256,
            "weights": self.spec.weights_sha256,
            "tensors": self.spec.tensors_sha256,  # the function may read more files than the one it is given
            "shape": list(self.spec.image_shape),
            "diffusion": diffusion_identity(diffusion),
            **({} if self.conditions is None else {"conditions": list(self.conditions)}),
        }

    def sample_keys(self, settings: Sample) -> Mapping[str, Any]:
        if settings.weights != "ema":
            raise UserError(
                f"sample.weights is {settings.weights}, but a custom network has one set of weights; remove the key"
            )
        if settings.precision == "bf16-weights" and self.spec.summary == A_FUNCTION:
            raise UserError(f"{self.spec.callable} {NEEDS_MODULE}")
        return {}

    def network(self, folder: Path, weights: str, storage: Storage = LOCAL) -> NetworkSpec:
        if self.spec.unusable is not None:
            raise UserError(self.spec.unusable)
        return self.spec

    def weights_file(self, folder: Path, weights: str) -> Path:
        """The file `model.weights`; without one, the record of what was loaded."""
        return folder / RECORD if self.spec.weights is None else Path(self.spec.weights)

    def weights_sha256(self, folder: Path, weights: str, storage: Storage = LOCAL) -> str:
        """SHA-256 of the file `model.weights` or, without one, of everything loaded; `UserError` if it is gone."""
        if self.spec.weights is None:
            return self.spec.weights_sha256
        return custom_process.weights_sha256(Path(self.spec.weights))

    def record(self) -> dict[str, Any] | None:
        return None if self.spec.unusable else self.spec.recorded

    def warning(self, diffusion: Diffusion) -> str | None:
        return self.spec.doubt

    def description(self, diffusion: Diffusion, settings: Collection[Sample]) -> str:
        weights = f" with {self.spec.weights}" if self.spec.weights else ""
        now = f"; that was when it was sampled ({self.spec.unusable.splitlines()[0]})" if self.spec.unusable else ""
        classes = "" if self.conditions is None else f", {self.conditions.in_words}"
        return f"{self.spec.callable}{weights} returned {self.spec.summary} ({diffusion.in_words}{classes}){now}"


@dataclass(frozen=True)
class Oracle(ModelSource):
    """The optimal eps, in closed form, for the distribution that `data` names."""

    distribution: str
    data: Data

    @property
    def conditions(self) -> Conditions | None:
        classes = len(self.data.dataset.classes)
        return Conditions(classes, null_label=classes) if self.distribution == "classes" else None

    def content(self, diffusion: Diffusion) -> dict[str, Any]:
        shape = list(self.data.image_shape)
        return {"oracle": self.distribution, "shape": shape, "diffusion": diffusion_identity(diffusion)}

    @property
    def architecture(self) -> dict[str, Any]:
        return {"oracle": self.distribution, "shape": list(self.data.image_shape)}

    def sample_keys(self, settings: Sample) -> Mapping[str, Any]:
        for key, wanted in (("compile", settings.compile), ("precision", settings.precision)):
            if wanted in ("default", "bf16-weights"):
                raise UserError(f"sample.{key} is {wanted}, but an oracle is not a torch network; remove the key")
        return {}

    def network(self, folder: Path, weights: str, storage: Storage = LOCAL) -> NetworkSpec:
        return OracleNetwork(self.data, self.conditions)

    def weights_sha256(self, folder: Path, weights: str, storage: Storage = LOCAL) -> str:
        return hashlib.sha256(f"taugrid/oracle/{self.distribution}/{self.data.image_shape}".encode()).hexdigest()

    def description(self, diffusion: Diffusion, settings: Collection[Sample]) -> str:
        return f"the {self.distribution} oracle"

    def relation_to(self, data: Data) -> str:
        return "draws from the distribution that the oracle knows"


@dataclass(frozen=True)
class Absent(ModelSource):
    """A checkpoint, or a custom network's weights, that is not here: a plan prices its cells, and nothing runs them."""

    path: str  # as the config has it
    data: Data

    @property
    def name(self) -> str:
        return self.path

    def content(self, diffusion: Diffusion) -> dict[str, Any]:
        return {"absent": self.path, "diffusion": diffusion_identity(diffusion)}

    def network(self, folder: Path, weights: str, storage: Storage = LOCAL) -> NetworkSpec:
        raise UserError(f"{self.path} is not here")

    def is_ready(self, folder: Path, storage: Storage = LOCAL) -> bool:
        return False

    def description(self, diffusion: Diffusion, settings: Collection[Sample]) -> str:
        return f"{self.path} (not here yet)"


def count_parameters(unet: Unet, channels: int, labels: int) -> int | None:
    """The parameters of the network for images of `channels`, with rows for `labels`; None for levels with skips."""
    down: list[str] = [*unet.down_block_types]
    up: list[str] = [*unet.up_block_types]
    if any("Skip" in kind for kind in down + up):
        return None
    widths = unet.block_out_channels
    narrowest, widest, time = widths[0], widths[-1], 4 * widths[0]

    def residual(before: int, width: int) -> int:
        shortcut = _dense(before, width) if before != width else 0
        return 2 * before + _conv(before, width) + _dense(time, width) + 2 * width + _conv(width, width) + shortcut

    def level(kind: str, befores: list[int], width: int, is_last: bool) -> int:
        resample = 0 if is_last else residual(width, width) if kind.startswith("Resnet") else _conv(width, width)
        attention = len(befores) * _attention(width) if "Attn" in kind else 0
        return sum(residual(before, width) for before in befores) + attention + resample

    total = _conv(channels, narrowest) + _dense(narrowest, time) + _dense(time, time) + labels * time
    total += 2 * residual(widest, widest) + (_attention(widest) if unet.add_attention else 0)
    skips = [narrowest]  # the widths of what the way down leaves for the way up, of which a level takes one a block
    for number, (kind, width) in enumerate(zip(down, widths, strict=True), 1):
        is_last = number == len(widths)
        total += level(kind, [skips[-1], *[width] * (unet.layers_per_block - 1)], width, is_last)
        skips += [width] * (unet.layers_per_block + (not is_last))
    before = widest
    for number, (kind, width) in enumerate(zip(up, reversed(widths), strict=True), 1):
        befores = []
        for _ in range(unet.layers_per_block + 1):
            befores.append(before + skips.pop())
            before = width
        total += level(kind, befores, width, number == len(widths))
    return total + 2 * narrowest + _conv(narrowest, channels)


def _conv(before: int, width: int) -> int:
    return 9 * before * width + width


def _dense(before: int, width: int) -> int:
    return before * width + width


def _attention(width: int) -> int:
    """A normalisation, and the queries, keys, values and outputs."""
    return 2 * width + 4 * _dense(width, width)
