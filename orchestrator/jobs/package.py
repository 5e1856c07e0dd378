"""The files that are sent with a job: the config, the user's own modules and, with `--ship`, taugrid itself.

Ray copies the folder to every node as the job's working directory, from which Python imports first. Nothing else of the
submitting machine is sent: no other folder, no environment variable, no token.
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
"""The job's entry point, a file beside this one."""

NOT_CODE = shutil.ignore_patterns("__pycache__", "*.pyc")


def pack_job(config: Config, folder: Path, ships: bool) -> None:
    """Fill the empty `folder` with the files that a job of `config` needs; `ships` adds this taugrid.

    Raises:
        UserError: if a module that the config names can't be found, or the modules are too large.
    """
    values = config.model_dump(mode="json")
    (folder / config_file(config)).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(ENTRY), folder / ENTRY)
    files: dict[str, SourceFile] = {}
    for code in custom_code(config):
        module = code.name.partition(":")[0]
        source = ask("taugrid.workers.custom.source:find_source", {"module": module}, code.name, "be found")
        if source["sha256"] is None:
            raise UserError(
                f"{code.key}: there is no module {module!r}, neither in the current folder {Path.cwd()} nor on "
                "Python's path"
            )
        files |= {file[0]: SourceFile(*file) for file in source["files"]}
    pack(files.values(), folder)
    if ships:  # as a wheel would lay it out
        shutil.copytree(Path(taugrid.__file__).parent, folder / "taugrid", ignore=NOT_CODE)


def config_file(config: Config) -> str:
    """The name of the config's file in the folder."""
    return f"{config.name}.yaml"


def entrypoint(config: Config, out: str, break_lock: bool, only: Sequence[str] = ()) -> list[str]:
    """The command line that runs the job on the cluster, in the folder."""
    lock = ["--break-lock"] if break_lock else []
    part = [word for selector in only for word in ("--only", selector)]
    run = ["run", config_file(config), "--address", "auto", "--out", out, *part, *lock]
    return ["python3", ENTRY, taugrid.__version__, *run]
