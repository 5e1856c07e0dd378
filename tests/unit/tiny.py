"""The arguments of a U-Net of two levels without attention, for images of any even size, and a job of sampling."""

from taugrid.config import DIFFUSION_DEFAULTS, Data
from taugrid.jobs import OracleNetwork
from taugrid.workers.diffusion.decoder import Identity
from taugrid.workers.jobs import SampleJob
from taugrid.workers.samplers.description import SAMPLE_DEFAULTS, describe_sampler

UNET = {
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
    "add_attention": False,
}

WITH_ATTENTION = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip

COLUMNS = {
    "seed": 3, "steps": 10, "eta": 1.0, "sigma": "eta", "spacing": "linear", "sampler": "ddim", "clip": "none",
    "cell": "x", "model": "y",
}  # fmt: skip
"""What a file of samples says of each of its rows."""


def job_of(path, shape, batch, images):
    """Samples `images` images in `path`, with S = 10 and eta = 1. Its network is a distribution's: bring another."""
    settings = SAMPLE_DEFAULTS.model_copy(update={"steps": 10, "eta": 1.0, "batch_size": batch})
    sampler = describe_sampler(settings, DIFFUSION_DEFAULTS)
    network, metadata = OracleNetwork(Data(name="gaussian", shape=shape)), {"cell": "x", "model": "x"}
    told = settings, DIFFUSION_DEFAULTS, sampler.tau, sampler.evaluations, metadata
    return SampleJob(path, 0, images, network, Identity(shape), *told)
