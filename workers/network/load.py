"""Loads any network that a job names (a saved UNet, a custom network, an oracle) as a function of x and t."""

from taugrid.config import Diffusion
from taugrid.jobs import CustomNetwork, NetworkSpec, SavedUnet
from taugrid.workers import schedules
from taugrid.workers.data.builtin import distribution
from taugrid.workers.diffusion import gaussian, oracle
from taugrid.workers.diffusion.process import Denoiser, network_index
from taugrid.workers.network import custom


def load_network(network: NetworkSpec, diffusion: Diffusion, device: str, compiled: bool = False) -> Denoiser:
    """A network for inference on `device`, as a function of x, (B, C, H, W) float32, and the paper's t in 1..T.

    It returns what the network predicts (`diffusion.prediction`), in the shape of x. `compiled`: by torch.compile.

    Raises:
        OtherContent: if this node has other files, code or weights than the driver planned with, or none.
        OSError: if a file can't be read.
        WrongWeights: if the weights in a folder do not fit its config.json.
        CustomCodeError: if a custom function returns no network. Calling it raises the same for a wrong output, see
            `custom.checked`.
    """
    if isinstance(network, SavedUnet):
        from taugrid.workers.network.unet import load_unet  # diffusers takes seconds, and only these need it

        return load_unet(network, device, compiled)
    if isinstance(network, CustomNetwork):
        batched = custom.load(network, device, compiled)
        return lambda x, t: batched(x, network_index(t, x))
    data = distribution(network.data)
    if isinstance(data, gaussian.Gaussian):
        return oracle.gaussian_eps(data, schedules.alpha_bar(diffusion), device)
    return oracle.two_points_eps(data, schedules.alpha_bar(diffusion), device)
