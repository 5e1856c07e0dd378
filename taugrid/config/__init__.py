"""The configuration: its sections, and loading.

Keys of `data`, `model`, `diffusion`, `train` and `sample` are hashed into the identities of models and cells: a new key
must come with a default that means "as before", and the default of an existing key never changes. Either would orphan
every run that people have.
"""

from taugrid.config.experiment import GRID_SECTIONS, Cluster, Config, Evaluate, Gate, Report, schema
from taugrid.config.model import (
    CONSISTENCY_DEFAULTS,
    DIFFUSION_DEFAULTS,
    EDM_DEFAULTS,
    FLOW_DEFAULTS,
    SCHEDULE_KEYS,
    SIGMA_KEYS,
    Data,
    Diffusion,
    LossWeights,
    ModelSection,
    Train,
    Unet,
)
from taugrid.config.sample import Sample
from taugrid.config.section import S, Section, validate
