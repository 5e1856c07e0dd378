"""What a user may write: an extractor, with a fault as in own.py."""

from pathlib import Path

import torch_fidelity


class Extractor(torch_fidelity.FeatureExtractorBase):
    """The pixels from 0 to 1, and the distances to three greys as the logits of a classifier."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)

    def forward(self, images):
        pixels = images[:, :1].flatten(1).float() / 255
        if (Path(__file__).parent / "other-scores").exists():
            pixels = pixels * 1.01
        return tuple(pixels if name == "pixels" else pixels[:, :3] for name in self.features_list)

    @staticmethod
    def get_provided_features_list():
        return ("pixels", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return {"isc": "logits"}.get(metric, "pixels")
