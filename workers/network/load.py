"""Loads any network that a job names: a saved UNet, a custom network, an oracle."""

from taugrid.config import Diffusion
from taugrid.jobs import CustomNetwork, NetworkSpec, SavedUnet
from taugrid.workers import schedules
from taugrid.workers.data.builtin import distribution
from taugrid.workers.diffusion import gaussian, oracle
from taugrid.workers.diffusion.denoiser import Denoiser, from_times
from taugrid.workers.network import custom


def load_network(network: NetworkSpec, diffusion: Diffusion, device: str, compiled: bool = False) -> Denoiser:
    """A network for inference on `device`, which predicts `diffusion.prediction`. `compiled`: by torch.compile.

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
        return from_times(custom.load(network, device, compiled))
    data = distribution(network.data)
    if isinstance(data, gaussian.Gaussian):
        return oracle.gaussian_eps(data, schedules.alpha_bar(diffusion), device)
    return oracle.two_points_eps(data, device)
