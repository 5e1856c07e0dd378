"""A class-conditional network of 8x8 digits in a module of its own, for small runs in this process."""

import yaml

MODULE = '''
import torch
from torch import nn

MEANS = """
004db30001ddbb1004e52c4005d2096006c1097003d22b6001daad20004ed500
0029a610004de810017fe710029ee600017ce600005ad600005be8210029d931
01aea20005ecd6000585c6000125c4000019a200015c721001becb7101aedc82
018ee71004d9bc200243c9100019e6000016cb2000114c6001768d60019fe910
0007b200003d821001ab564005e67b6009fade5006bcfa200138d4000018c200
01adec4004fc862006e6210005ec940002889820001478200168b71001bf9300
001ba100007f610001da100002e8420004fdca3002fb6a9000ad6bb1001bfd40
005deb5101bcbc5101527b300146cc50019dfb40015cb410003c6000006c2000
005cc61002cb9c3003c78c20019dd710007ed40001b9981001b88a20005dd710
006cb62002daab3004c68e3002acde4000355c5000112a6001656b50006cd920
"""
# The mean image of each of scikit-learn's digits, a grey level from 0 to 16 a character.


class Digits(nn.Module):
    """Predicts x0 as the mean of the label's digits, and some of x; `asked`: how much of the label it follows."""

    num_classes, null_label = 10, 10

    def __init__(self):
        super().__init__()
        means = torch.tensor([[int(c, 17) / 8 - 1 for c in line] for line in MEANS.split()]).reshape(10, 8, 8)
        self.means = nn.Parameter(torch.cat([means, means.mean(dim=0, keepdim=True)]))
        self.asked = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, t, label):
        own, null = self.means[label][:, None], self.means[10]
        return null + self.asked * (own - null) + 0.3 * x


def digits(weights=None):
    network = Digits()
    if weights is not None:
        network.asked.data = torch.load(weights, weights_only=True)
    return network
'''

CONFIG = {
    "name": "classes",
    "model": {"callable": "digit_classes:digits"},
    "data": {"name": "digits"},
    "diffusion": {"prediction": "sample"},
    "sample": {"seed": 0, "num_samples": 200, "batch_size": 100, "labels": "balanced"},
    "grid": {"steps": [2], "eta": [0.0]},
    "evaluate": {"metrics": ["agreement"]},
    "cluster": {"workers": 1},
}


def text(**changes):
    """The config as YAML; `changes` are merged into its sections."""
    sections = {key: {**CONFIG[key], **value} if isinstance(CONFIG.get(key), dict) else value
                for key, value in changes.items()}  # fmt: skip
    return yaml.safe_dump(CONFIG | sections)


def write_module(folder):
    """Put `digit_classes` into a folder, which must be the current one (`asked_here`)."""
    (folder / "digit_classes.py").write_text(MODULE)
