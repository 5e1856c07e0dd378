"""Memory: the peak of a network call, what happens when it is used up, and a broken device."""

import torch

from benchmarks.device.setting import NotHere, Setting, in_a_process
from taugrid.config.sample import Precision
from taugrid.errors import is_accelerator_error, is_out_of_memory, last_line
from taugrid.workers.device import release_memory
from taugrid.workers.diffusion.process import Point

FIRST = Point(alpha=1.0, sigma=0.0, alpha_bar=1.0, time=0, key=1)

ROOM_BYTES = 2 * 2**30
"""What this process may have, so that small batches use it up."""

BREAKS = "import torch; torch.zeros(2, device='cuda')[torch.tensor([5], device='cuda')]; torch.cuda.synchronize()"


def memory(setting: Setting) -> None:
    """Peaks by precision; the batch that does not fit in 2 GiB; an assert on the device."""
    if not setting.on_gpu:
        raise NotHere("device memory and device asserts need a GPU")
    for precision in setting.precisions:
        _peak(setting, precision)
    try:
        _used_up(setting)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    try:
        in_a_process(BREAKS)
    except RuntimeError as error:
        setting.say("an assert on the device", str(error)[-600:])
        setting.say("is known as the accelerator's", is_accelerator_error(error))
    setting.say("another process after it", in_a_process("import torch; print(torch.ones(1, device='cuda').item())"))


def _peak(setting: Setting, precision: Precision) -> None:
    """Say what is free before a call, and what it then takes and torch reserves for it."""
    model, x = setting.network(precision), torch.zeros(setting.batch, *setting.shape, device=setting.device)
    release_memory(setting.device)
    held, reserved, free = torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
    torch.cuda.reset_peak_memory_stats()
    model(x, FIRST)
    setting.wait()
    taken = free - torch.cuda.mem_get_info()[0]
    for what, size in {
        "free before": free, "peak of a call": torch.cuda.max_memory_allocated() - held + x.nbytes,
        "reserved for it": torch.cuda.max_memory_reserved() - reserved, "taken from the driver": taken,
    }.items():  # fmt: skip
        setting.say(f"GB: {what}, {precision}", size / 1e9)


def _used_up(setting: Setting) -> None:
    """What torch says where 2 GiB are not enough."""
    model, batch = setting.network("float32", fills_up=False), 1 if setting.short else 64
    release_memory(setting.device)
    room = ROOM_BYTES + torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction(min(1.0, room / torch.cuda.get_device_properties(0).total_memory))
    try:
        while batch < 16 * setting.batch:
            model(torch.zeros(batch, *setting.shape, device=setting.device), FIRST)
            setting.wait()
            batch *= 2
    except Exception as error:
        setting.say(f"batch {batch} in 2 GiB", f"{type(error).__name__}: {last_line(error)[:200]}")
        setting.say("is known as lack of memory", is_out_of_memory(error))
    release_memory(setting.device)
