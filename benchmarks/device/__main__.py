"""What an accelerator makes of taugrid, in parts of at most a minute.

    python -m benchmarks.device [--device cuda] [--short] [--from PART] [PART ...]

Each figure is a line, printed as soon as it is measured, with its goal on a GPU if it has one; after each part comes a
line of JSON. Parts come in the order of their worth, and those that compile come last. One that takes over a minute is
stopped and keeps its figures; one that can't be measured here says why ("skipped"); one that fails says how ("failed"),
the rest goes on, and the exit code is 1.

On a CPU it is always `--short`: a small network, without a compiler, within 90 s on two cores. That shows that all
parts run, and says nothing of a GPU.
"""

import argparse
import faulthandler
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.device import exactness, memory, speed
from benchmarks.device.setting import NotHere, Setting
from taugrid.workers.device import set_up, usual_device

PARTS: dict[str, Callable[[Setting], None]] = {
    "card": exactness.card,
    "side-by-side": speed.side_by_side,
    "idle": speed.idle,
    "memory": memory.memory,
    "bits": exactness.bits,
    "training": speed.training,
    "features": speed.features,
    "compiled": speed.compiled,
    "compiled-diffusers": speed.compiled_diffusers,
}

SECONDS = 60.0
"""The most that a part may take."""

HANGS_AFTER_SECONDS = 120.0
"""A part that has not ended by then waits for a device that hangs: the process says where, and ends."""


class OutOfTime(BaseException):
    """Raised in a part when its time is up. No `Exception`: libraries wrap those in their own."""


def _stop(signum: int, frame: object) -> None:
    raise OutOfTime


def measure(part: str, setting: Setting, seconds: float = SECONDS) -> dict[str, Any]:
    """Run a part, and return the line of JSON about it."""
    began, outcome = time.perf_counter(), dict[str, str]()
    setting.part, setting.figures = part, {}
    before = signal.signal(signal.SIGALRM, _stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        PARTS[part](setting)
    except OutOfTime:
        outcome = {"stopped": f"after {seconds:g} s"}
    except NotHere as reason:
        outcome = {"skipped": str(reason)}
    except Exception as error:  # the other parts may still tell something
        traceback.print_exc()
        outcome = {"failed": f"{type(error).__name__}: {error}"[-2000:]}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    for what, why in outcome.items():
        print(f"{part}: {what}: {why}", flush=True)
    about = {"part": part, "device": setting.device, "seconds": round(time.perf_counter() - began, 1)}
    return about | outcome | {"figures": setting.figures}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 1 if a part failed, else 0. SystemExit(2): arguments that can't be used, or no such device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"all if none is named: {', '.join(PARTS)}")
    parser.add_argument("--from", dest="first", choices=PARTS, help="skip the parts before")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=usual_device())
    parser.add_argument("--short", action="store_true", help="small sizes, as always on a CPU")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.parts) - PARTS.keys()):
        parser.error(f"unknown part {', '.join(unknown)}; known: {', '.join(PARTS)}")
    if given.parts and given.first:
        parser.error("--from goes with no PART: it names the first of all")
    if given.device == "cuda" and not torch.cuda.is_available():
        why = "torch finds no GPU" if torch.backends.cuda.is_built() else "this torch is built without CUDA"
        parser.exit(2, f"--device cuda: {why}; install a torch for this machine's GPU, or use --device cpu\n")
    names = list(PARTS)
    set_up(1)
    setting = Setting(given.device, given.short or given.device == "cpu")
    exit_code = 0
    for part in dict.fromkeys(given.parts) or names[names.index(given.first or names[0]) :]:
        faulthandler.dump_traceback_later(HANGS_AFTER_SECONDS, exit=True, file=sys.__stderr__)
        found = measure(part, setting)
        faulthandler.cancel_dump_traceback_later()
        exit_code |= "failed" in found
        print(json.dumps(found), flush=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
