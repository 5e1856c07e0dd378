"""Decides which custom code may run: code that the user's own config files have named, or all with --trust-code.

A run directory may come from a different user, and its config.json names code. It runs only if one of the user's own
config files has named the same code before: the same function or class, with the same source and the same file of
weights (which may be a pickle). Its hash is then in the user's trust file.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from taugrid.config import Config
from taugrid.errors import UserError
from taugrid.grids import values_by_key
from taugrid.hashing import file_sha256, json_sha256
from taugrid.registry.samplers import is_custom
from taugrid.storage import read_json, write_json
from taugrid.workers.custom.describe import ask

WITHOUT_CODE = "read-only commands run none of a directory's code"


class Code(NamedTuple):
    key: str
    """The config's key: `model.callable`, `sample.sampler` or `evaluate.extractor`."""
    name: str  # `package.module:attribute`
    weights: str | None  # the path of the weights file that the code is called with

    @property
    def sha256(self) -> str | None:
        """SHA-256 of all that determines what the code does; None if its source or its file of weights is not found."""
        arguments = {"module": self.name.partition(":")[0]}
        source = ask("taugrid.workers.custom.source:find_source", arguments, self.name, "be found")["sha256"]
        try:
            weights = None if self.weights is None else file_sha256(Path(self.weights))
        except OSError:
            return None
        return None if source is None else json_sha256({"name": self.name, "source": source, "weights": weights})


def custom_code(config: Config) -> list[Code]:
    """The custom code that a config names, each with every file of weights that it may be given. Values of the grid
    that are no texts are skipped: no plan is made with them."""
    codes = []
    for values in map(values_by_key, config.grid or [{}]):
        names = values.get("model.callable", [config.model.callable])
        weights = values.get("model.weights", [config.model.weights])
        files = [file for file in weights if file is None or isinstance(file, str)]
        codes += [Code("model.callable", name, file) for name in names if isinstance(name, str) for file in files]
        samplers = [name for name in values.get("sampler", [config.sample.sampler]) if isinstance(name, str)]
        codes += [Code("sample.sampler", name, None) for name in samplers if ":" in name and is_custom(name)]
    extractor = config.evaluate.extractor
    if extractor is not None and ":" in extractor:
        codes.append(Code("evaluate.extractor", extractor, config.evaluate.weights))
    return list(dict.fromkeys(codes))


def trust(codes: Iterable[Code]) -> None:
    """Write code that the user's own config named to the user's trust file. Does nothing where it can't be written."""
    trusted = _trusted()
    new = {digest: code.name for code in codes if (digest := code.sha256) is not None and digest not in trusted}
    if new:
        try:
            write_json(trust_file(), trusted | new)
        except OSError:
            return  # a later run of a directory that names it will ask for --trust-code


def require_trusted(codes: Sequence[Code], place: Path) -> None:
    """Raise `UserError` unless all code that the config in `place` names is in the user's trust file."""
    trusted = _trusted() if codes else {}
    for code in codes:
        if (digest := code.sha256) is None:
            files = "" if code.weights is None else f", or no file {code.weights}"
            raise UserError(
                f"{code.key}: {place} names {code.name}, but there is no module {code.name.partition(':')[0]} in the "
                f"current folder {Path.cwd()} or on Python's path{files}; put it there, or run in its folder"
            )
        if digest not in trusted:
            raise UserError(
                f"{code.key}: {place} names the code {code.name}, which no config file of yours has named as it is "
                "now, and a directory from another user could run anything as you; read it and add --trust-code, or "
                "give your own config with --out"
            )


def trust_file() -> Path:
    """Hashes of the code that the user's own configs have named, in the user's state folder."""
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "taugrid" / "trusted.json"


def _trusted() -> dict[str, str]:
    """SHA-256 -> the name of the code."""
    trusted = read_json(trust_file())
    return trusted if isinstance(trusted, dict) else {}
