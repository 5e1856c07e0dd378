"""`evaluate`: how cells are scored."""

from typing import Literal

from taugrid.config.data import Data
from taugrid.config.section import Positive, Section, Seed


class Evaluate(Section):
    """How cells are scored."""

    extractor: str | None = None
    """Name of a feature extractor; null chooses by data (`digits-convnet` for digits, `pixels` for distributions)."""
    weights: str | None = None
    """Path of the extractor's weights, where it doesn't ship with taugrid."""
    reference: Data | str | None = None
    """What samples are compared with: null is `data`; a data section ({name: digits, split: test}); or a folder of PNG
    or JPEG, Parquet, an .npz of images or of mu and sigma, or a data set's name in torch-fidelity (cifar10-train)."""
    metrics: list[Literal["fid", "isc", "kid", "prc", "fid_infinity"]] = ["fid", "isc", "kid"]
    """Any of fid, isc, kid, prc (precision and recall) and fid_infinity (extrapolated, Chong & Forsyth 2020)."""
    batch_size: Positive = 250
    isc_splits: Positive = 10
    kid_subsets: Positive = 100
    kid_subset_size: Positive = 1_000
    """Reduced to N or to the reference's size where those are smaller, and recorded."""
    prc_neighborhood: Positive = 3
    """Which nearest neighbour a ball of precision and recall reaches to."""
    keep_features: bool = True
    """Keep the features of scored cells; without them another metric has to extract them anew."""
    seed: Seed = 2020
    """Shuffles of IS, subsets of KID and of fid_infinity; torch-fidelity's default."""
