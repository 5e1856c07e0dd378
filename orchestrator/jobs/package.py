"""What a job takes along: a small folder with the config, the user's own modules and, if asked, taugrid itself.

Ray copies the folder to every node, as the job's working directory, where Python imports from it first. Nothing else of
the machine that submits goes along: no folder of the user's, no environment variable, no token.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

import taugrid
from taugrid.config import Config
from taugrid.errors import UserError
from taugrid.hashing import SourceFile
from taugrid.orchestrator.plan.trust import custom_code
from taugrid.workers.custom.describe import ask
from taugrid.workers.custom.source import pack

ENTRY = "on_the_head.py"
"""The file beside this one that a job begins with."""

NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc")


def pack_job(config: Config, folder: Path, ships: bool) -> None:
    """Fill `folder`, which is empty, with what a job of `config` needs; `ships` adds this taugrid.

    Raises:
        UserError: if a module that the config names can't be found, or the modules are too large.
    """
    values = config.model_dump(mode="json")
    (folder / config_file(config)).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(ENTRY), folder / ENTRY)
    files: dict[str, SourceFile] = {}
    for code in custom_code(config):
        module = code.name.partition(":")[0]
        found = ask("taugrid.workers.custom.source:find_source", {"module": module}, code.name, "be found")
        if found["sha256"] is None:
            raise UserError(
                f"{code.key}: there is no module {module!r}, neither in the current folder {Path.cwd()} nor on "
                "Python's path"
            )
        files |= {file[0]: SourceFile(*file) for file in found["files"]}
    pack(files.values(), folder)
    if ships:
        _pack_taugrid(folder)


def config_file(config: Config) -> str:
    """The name of the config's file in the folder."""
    return f"{config.name}.yaml"


def _pack_taugrid(folder: Path) -> None:
    """Copy the taugrid that runs here, as a wheel would lay it out."""
    shutil.copytree(Path(taugrid.__file__).parent, folder / "taugrid", ignore=NOT_CODE)


def entrypoint(config: Config, out: str, break_lock: bool, only: Sequence[str] = ()) -> list[str]:
    """The words of the command that runs the job on the cluster, in the folder."""
    lock = ["--break-lock"] if break_lock else []
    part = [word for selector in only for word in ("--only", selector)]
    run = ["run", config_file(config), "--address", "auto", "--out", out, *part, *lock]
    return ["python3", ENTRY, taugrid.__version__, *run]
