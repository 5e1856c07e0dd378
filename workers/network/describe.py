"""What a custom network is, as JSON: `python -m taugrid.workers.network.describe package.module:function C H W T`.

It runs in a process of its own (`workers.network.custom_process.describe`), because a network needs torch and the
driver has none.
"""

import argparse
import sys
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from taugrid.workers.custom import source as own_code
from taugrid.workers.custom.process import reply
from taugrid.workers.network.custom import BatchedDenoiser, UnusableNetwork, for_inference, make, source_sha256, tensors

LONGEST_REASON = 200
"""Characters of an exception's text that are shown."""

TOLERANCE = 0.05
"""Of the largest output: what one image's prediction may differ by when it is computed again or in another batch.
Rounding in half precision moves it by 0.01, dropout or batch norm in training mode by about 1."""


class Description(NamedTuple):
    """The fields of an `CustomNetwork` that only the network itself knows."""

    source_sha256: str
    tensors_sha256: str
    content_sha256: str
    """Of the sources, of every file of one's own that was loaded, and of the network's tensors."""
    summary: str


def describe(name: str, weights: str | None, image_shape: tuple[int, int, int], timesteps: int) -> Description:
    """What the function `name` returns, tried on the CPU on two images of noise of `image_shape` (C, H, W).

    Raises:
        UnusableNetwork: if it can't be used as a network of `timesteps` time steps, or is none that is the same in
            every process: see `_try`, `workers.network.custom.make` and `checked`.
    """
    x, t = _inputs(image_shape, timesteps)
    made = make(name, weights)
    found = own_code.tensors_sha256(tensors(made))
    network = for_inference(made, name, "cpu")
    output = _try(network, name, x, t)
    source = source_sha256(name)
    content = own_code.content_sha256(source, found)
    summary = _summary(made)
    del made, network  # two large networks may not fit into memory
    again = make(name, weights)
    same_tensors = own_code.tensors_sha256(tensors(again)) == found
    with torch.no_grad():
        same_output = _is_close(for_inference(again, name, "cpu")(x, t), output)
    if not (same_tensors and same_output):
        raise UnusableNetwork(
            f"{name} returned two different networks when it was called twice, and would return another to each "
            "worker: have it load its weights, or call torch.manual_seed first"
        )
    return Description(source, found, content, summary)


@torch.no_grad()  # as the sampler does
def _try(network: BatchedDenoiser, name: str, x: Tensor, t: Tensor) -> Tensor:
    """The network's output for `_inputs`; `UnusableNetwork` if it is no function of each image and its time alone."""
    before = x.clone()
    output = network(x, t)
    if not output.isfinite().all():
        raise UnusableNetwork(f"the network of {name} returned nan or infinity for noise, at t = {t.tolist()}")
    if not torch.equal(x, before):
        raise UnusableNetwork(f"the network of {name} changed x in place, which sampling still needs: use x.clone()")
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1]) for i in range(len(x))])
    if not _is_close(alone, output):
        if not _is_close(network(x, t), output):
            raise UnusableNetwork(
                f"the network of {name} returned two different outputs for the same x and t: dropout that is still on? "
                "taugrid calls eval() on an nn.Module that the function returns, and on nothing else"
            )
        raise UnusableNetwork(
            f"the network of {name} predicts something else for an image alone than in a batch with another at another "
            "time: batch norm in training mode, or one t used for all?"
        )
    return output


def _inputs(image_shape: tuple[int, int, int], timesteps: int) -> tuple[Tensor, Tensor]:
    """Two images of noise, (2, C, H, W) float32, and the first and last index that DDPM networks know, (2,) int64.

    One is darker, or a batch norm that takes its statistics from the batch would hardly be seen.
    """
    seeded = torch.Generator().manual_seed(0)  # what a network keeps of its input should not change its identity
    x = torch.randn(2, *image_shape, generator=seeded)
    return x * torch.tensor([0.5, 1.0]).view(2, 1, 1, 1), torch.tensor([0, timesteps - 1])


def _is_close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= TOLERANCE * b.abs().max())


def _summary(made: Any) -> str:
    if not isinstance(made, nn.Module):
        return "a function"
    return f"{type(made).__name__}, {sum(parameter.numel() for parameter in made.parameters()):,} parameters"


def main() -> None:
    """Prints the description as JSON; what is wrong with the network in one line on stderr."""
    parser = argparse.ArgumentParser(description="Print what one's own network is, as JSON.")
    parser.add_argument("name", help="package.module:function")
    parser.add_argument("shape", type=int, nargs=3, metavar="SIDE", help="channels, height and width of an image")
    parser.add_argument("timesteps", type=int, help="T, the number of time steps")
    parser.add_argument("--weights", help="the file whose path the function is called with")
    arguments = parser.parse_args()
    sys.path.append(str(Path.cwd()))  # Ray's workers, too, import from the driver's folder
    channels, height, width = arguments.shape
    try:
        found = describe(arguments.name, arguments.weights, (channels, height, width), arguments.timesteps)
    except UnusableNetwork as error:
        sys.exit(str(error))
    except Exception as error:  # of one's own code: where it is from, and then what it is in one line
        traceback.print_exc()
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST_REASON]}")
    reply(found._asdict())


if __name__ == "__main__":
    main()
