"""Asking another Python process about one's own code: it needs torch, and whoever asks may only be looking.

Imports no torch.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

ANSWER = "taugrid's answer: "
"""How the line begins."""


def ask(module: str, arguments: Sequence[str], subject: str, trial: str, timeout_seconds: float) -> dict[str, Any]:
    """The JSON object that `python -m module arguments` prints in a line of its own.

    `subject` and `trial` say in errors what is described there, and what is done with it.

    Raises:
        ValueError: one line with the last of what it said on stderr, and the command that shows all, where it fails or
            takes longer than `timeout_seconds`.
    """
    # -P: without it a folder `eval` in the current one would be taken for taugrid's.
    whole = [sys.executable, "-P", "-m", module, *arguments]
    command = shlex.join(["python", "-m", module, *arguments])
    try:
        done = subprocess.run(whole, capture_output=True, text=True, check=False, timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{subject} took more than {timeout_seconds:.0f} seconds to {trial}; see what it does: {command}"
        ) from None
    # One's own code may print, too, before and after it.
    printed = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if done.returncode or not printed:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ValueError(f"{subject} can't be used: {reason} (where that comes from: {command})")
    answer: dict[str, Any] = json.loads(printed[-1].removeprefix(ANSWER))
    return answer


def reply(answer: Mapping[str, Any]) -> None:
    """Print what `ask` reads, in the process that is asked."""
    print(f"\n{ANSWER}{json.dumps(answer)}")
