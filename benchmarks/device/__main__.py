"""One command that says what an accelerator makes of taugrid: a line of JSON after each part.

    python -m benchmarks.device [--device cuda] [--short] [--seconds 480] [PART ...]

Parts, in the order in which they say most: card, noise, steps, pipeline, bits, shard, flips, samplers, extraction,
training, memory, encoders. A part that can't be measured on this device says why ("skipped"), one that fails says how
("failed"), and the rest goes on. What is left after `--seconds` is skipped. Each line names the device, so that no
figure of a CPU can be taken for one of a GPU.

On a CPU the command takes its short form: one small network, small batches. That shows that all parts run and gives
ratios for this CPU. It says nothing of a GPU.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.device import exactness, health, speed
from benchmarks.device.setting import NotHere, Setting
from taugrid.workers.device import set_up

PARTS: dict[str, Callable[[Setting], dict[str, Any]]] = {
    "card": health.card,
    "noise": exactness.noise,
    "steps": speed.steps,
    "pipeline": speed.pipeline,
    "bits": exactness.bits,
    "shard": speed.shard,
    "flips": exactness.flips,
    "samplers": exactness.samplers,
    "extraction": speed.extraction,
    "training": exactness.training,
    "memory": health.memory,
    "encoders": speed.encoders,
}


def measured(part: str, setting: Setting) -> dict[str, Any]:
    """What a part found, or why it found nothing."""
    try:
        return PARTS[part](setting)
    except NotHere as reason:
        return {"skipped": str(reason)}
    except Exception as error:  # the other parts may still tell something
        return {"failed": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="all if none is named")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--short", action="store_true", help="small sizes, as always on a CPU")
    parser.add_argument("--seconds", type=float, default=480.0, help="no part begins later")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - PARTS.keys())
    if unknown:
        parser.error(f"unknown part {', '.join(unknown)}; known: {', '.join(PARTS)}")
    set_up(1)
    setting = Setting(arguments.device, arguments.short or arguments.device == "cpu")
    start = time.perf_counter()
    for part in arguments.parts or PARTS:
        began = time.perf_counter()
        late = began - start > arguments.seconds
        found = {"skipped": f"no time left of {arguments.seconds:g} s"} if late else measured(part, setting)
        seconds = round(time.perf_counter() - began, 1)
        print(json.dumps({"part": part, "device": setting.device, "seconds": seconds, **found}), flush=True)


if __name__ == "__main__":
    main()
