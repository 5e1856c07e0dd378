"""How fast the sampling stage is on CPUs: against the bare network, and against diffusers, in one run.

    python -m benchmarks.ratios CHECKPOINT [--shards 32] [--steps 10] [--batch 64] [--rounds 1]

CHECKPOINT is a folder that diffusers' DDIMPipeline reads, such as fashion-ddpm-28. Two workers of one thread each
sample `--shards` shards of one batch, half of them with eta 0 and half with 1, in float32 and in bf16 with
torch.compile.

- bare: evaluations of the same network and batches in two processes, with nothing around them;
- diffusers: images by DDIMPipeline in two processes, as shipped, with nothing encoded or written.

These two do a quarter of the shards before the stage and a quarter after it; figures are for all shards. Ratios are
above 1 where the stage is faster.
CPU seconds are those of all processes, Ray's too; trust them where other work shares the machine.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.overhead import BareForwards, Spent, WarmWorker, run_loop, spread
from taugrid.config import Config
from taugrid.config.load import load
from taugrid.jobs import Job, Result, WorkerInfo
from taugrid.orchestrator.dispatch import cluster
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.task import Task
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.workers.actor import HeartbeatActor, Probe
from taugrid.workers.jobs import SampleJob

WORKERS = 2


class Pipeline(HeartbeatActor):
    """diffusers' DDIM, as it is shipped."""

    def __init__(self, checkpoint: str, batch: int, steps: int) -> None:
        super().__init__()
        self._checkpoint, self._batch, self._steps = checkpoint, batch, steps

    def check_health(self, probe: Probe) -> WorkerInfo:
        import torch
        from diffusers import DDIMPipeline, DDIMScheduler

        torch.set_num_threads(1)
        pipe = DDIMPipeline.from_pretrained(self._checkpoint, local_files_only=True, low_cpu_mem_usage=False)
        self._pipe = DDIMPipeline(pipe.unet, DDIMScheduler.from_config(pipe.scheduler.config))
        self._pipe.set_progress_bar_config(disable=True)
        self._pipe(self._batch, num_inference_steps=1, output_type="np")
        return WorkerInfo("here", "cpu", {})

    def do(self, job: Job) -> Result:
        assert isinstance(job, SampleJob)
        began = time.perf_counter()
        eta = job.settings.eta_number or 0.0
        self._pipe(self._batch, num_inference_steps=self._steps, eta=eta, output_type="np")
        return Result(time.perf_counter() - began, self._batch, True)


def experiment(checkpoint: str, shards: int, steps: int, batch: int, **sample: str) -> Config:
    """`shards` shards of one batch."""
    sizes = {"num_samples": shards // 2 * batch, "batch_size": batch, "shard_evaluations": batch * steps}
    values = {
        "name": "ratios",
        "model": {"checkpoint": checkpoint},
        "data": {"name": "fashion-mnist"},
        "sample": sizes | sample,
        "grid": {"steps": [steps], "eta": [0.0, 1.0]},
        "cluster": {"workers": WORKERS},
    }
    return load(values)


def tasks(config: Config, folder: Path) -> dict[str, Task]:
    """The shards, none of them done."""
    rundir = RunDir(folder / "run")
    shutil.rmtree(rundir.samples, ignore_errors=True)
    survey = Survey(Run(config, plan(config), rundir), None, frozenset({"sample"}), lambda damage: None)
    return {task.key: task for task in SampleWork(survey).tasks()}


def of_all(quarters: list[Spent]) -> Spent:
    """What all shards would take, if two quarters of them took so long."""
    return Spent(2 * sum(part.seconds for part in quarters), 2 * sum(part.cpu_seconds for part in quarters))


def in_turns(config: Config, rivals: dict[str, tuple[type, tuple[Any, ...]]], folder: Path) -> dict[str, Spent]:
    """A quarter of each rival's work, the stage, and another quarter in reverse."""
    whole = tasks(config, folder)
    job = next(iter(whole.values())).job
    assert isinstance(job, SampleJob)
    items = list(whole.items())
    first, second = dict(items[::4]), dict(items[2::4])
    parts: dict[str, list[Spent]] = {name: [] for name in rivals}
    for name, (actor, arguments) in rivals.items():
        parts[name].append(spread(actor, arguments or (1, job), first, WORKERS, folder))
    stage = run_loop(WarmWorker, (1, job), whole, WORKERS, folder)
    for name, (actor, arguments) in reversed(rivals.items()):
        parts[name].append(spread(actor, arguments or (1, job), second, WORKERS, folder))
    return {"stage": stage} | {name: of_all(each) for name, each in parts.items()}


def tell(name: str, rival: Spent, stage: Spent, goal: float) -> None:
    """A line with both ratios."""
    print(
        f"{name}: {rival.seconds / stage.seconds:.3f} by the clock ({rival.seconds:.1f} s / {stage.seconds:.1f} s), "
        f"{rival.cpu_seconds / stage.cpu_seconds:.3f} in CPU seconds "
        f"({rival.cpu_seconds:.1f} / {stage.cpu_seconds:.1f}); goal {goal}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--shards", type=int, default=32, help="a multiple of 8")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    if given.shards < 8 or given.shards % 8:
        parser.error(f"--shards {given.shards}: expected a multiple of 8, so that each quarter has as many of each eta")
    sizes = str(Path(given.checkpoint).resolve()), given.shards, given.steps, given.batch
    plain = experiment(*sizes)
    quick = experiment(*sizes, precision="bf16", compile="default")
    bare: dict[str, tuple[type, tuple[Any, ...]]] = {"bare": (BareForwards, ())}
    with tempfile.TemporaryDirectory() as name, cluster.connected("local", plain.cluster):
        folder = Path(name)
        (folder / "run").mkdir()
        for _ in range(given.rounds):
            diffusers = {"diffusers": (Pipeline, (sizes[0], given.batch, given.steps))}
            exact, fast = in_turns(plain, bare | diffusers, folder), in_turns(quick, bare, folder)
            tell("float32 / bare float32", exact["bare"], exact["stage"], 0.97)
            tell("float32 / diffusers", exact["diffusers"], exact["stage"], 1.0)
            tell("bf16, compiled / the same bare", fast["bare"], fast["stage"], 0.97)
            tell("bf16, compiled / diffusers", exact["diffusers"], fast["stage"], 1.8)


if __name__ == "__main__":
    main()
