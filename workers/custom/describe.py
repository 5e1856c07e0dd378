"""Finds what a config names by an import string, and describes it in another process, which runs the code with torch.

`python -P -m taugrid.workers.custom.describe FUNCTION ARGUMENTS` is that process. taugrid itself writes the arguments,
which can be long, to its stdin.
"""

import importlib
import json
import math
import shlex
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from taugrid.errors import CustomCodeError, joined_lines
from taugrid.words import did_you_mean

ANSWER = "taugrid's answer: "
"""How the line with the answer begins. The user's code may print other lines before and after it."""

TIMEOUT_SECONDS = 600.0  # enough to download some weights, load a network twice and try it on a few images on a CPU

PATIENCE_SECONDS = 15.0  # after so long a trial is announced: torch alone takes some seconds to import


def find_module(name: str) -> ModuleType:
    """The module of that name, imported; CustomCodeError if there is none. The module's own errors pass through."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module exists, but something that it imports is missing
        raise CustomCodeError(
            f"there is no module {error.name!r}, neither in the current folder {Path.cwd()} nor on Python's path"
        ) from None


def find(name: str) -> Any:
    """The object that `package.module:attribute` names; CustomCodeError if there is no such module or attribute."""
    module_name, _, attribute = name.partition(":")
    module = find_module(module_name)
    if not hasattr(module, attribute):
        hint = did_you_mean(attribute, dir(module))
        raise CustomCodeError(f"the module {module_name} has no {attribute!r}{hint and f' ({hint})'}")
    return getattr(module, attribute)


def ask(
    function: str, arguments: Mapping[str, Any], subject: str, trial: str, limit: float = math.inf
) -> dict[str, Any]:
    """The fields of the dataclass that taugrid's `function` (`package.module:name`) returns, called by another process.

    `arguments` are its keyword arguments, which JSON must be able to hold. Errors say that `subject` can't be used, or
    that it took more than `limit` seconds, at most `TIMEOUT_SECONDS`, to do what `trial` says: "be loaded".

    Raises:
        CustomCodeError: if it fails or takes longer. The last line of stderr and, on a line of its own, the command
            that shows the whole traceback.
    """
    # -P: a user's file named like an installed package must not be imported in its place.
    command, given = ["-P", "-m", "taugrid.workers.custom.describe", function], json.dumps(arguments)
    shown = shlex.join([sys.executable, *command, given])
    pipe, limit = subprocess.PIPE, min(limit, TIMEOUT_SECONDS)
    with subprocess.Popen([sys.executable, *command], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            try:
                stdout, stderr = process.communicate(given, timeout=min(PATIENCE_SECONDS, limit))
            except subprocess.TimeoutExpired:
                if limit <= PATIENCE_SECONDS:
                    raise
                print(f"waiting up to {limit:.0f} seconds for {subject} to {trial}", file=sys.stderr)
                stdout, stderr = process.communicate(timeout=limit - PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise CustomCodeError(
                f"{subject} took more than {limit:.0f} seconds to {trial}; to watch it, run: {shown}"
            ) from None
        finally:
            process.kill()
    printed = [line for line in stdout.splitlines() if line.startswith(ANSWER)]
    if process.returncode or not printed:
        reason = (stderr.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        raise CustomCodeError(f"{subject} can't be used: {reason}\nfor the traceback, run: {shown}")
    answer: dict[str, Any] = json.loads(printed[-1].removeprefix(ANSWER))
    return answer


def main() -> None:
    """The main function of the other process: print the fields as JSON or, on stderr, a traceback and the error."""
    function, *given = sys.argv[1:]
    arguments = json.loads(given[0] if given else sys.stdin.read())
    sys.path.append(str(Path.cwd()))  # Ray's workers also import from the folder in which the driver was started
    try:
        fields = asdict(find(function)(**arguments))
    except Exception as error:
        traceback.print_exc()
        text = joined_lines(error)
        sys.exit(text if isinstance(error, CustomCodeError) else f"{type(error).__name__}: {text[:200]}")
    print(f"\n{ANSWER}{json.dumps(fields)}")


if __name__ == "__main__":
    main()
