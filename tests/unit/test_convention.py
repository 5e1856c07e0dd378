"""Custom networks of each process: what they are called with, and what their error on noised images tells of it."""

import math

import pytest
import torch
from plans import planned
from snapshots import raises, recorded

from taugrid.config import CONSISTENCY_DEFAULTS, DIFFUSION_DEFAULTS, EDM_DEFAULTS, FLOW_DEFAULTS, Data
from taugrid.errors import CustomCodeError
from taugrid.jobs import Conditions
from taugrid.workers import schedules
from taugrid.workers.diffusion.gaussian import gaussian
from taugrid.workers.network import custom
from taugrid.workers.network.custom import doubt, expected

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (1, 8, 8)
DATA = Data(name="gaussian", shape=SHAPE)
KNOWN = gaussian(SHAPE)
MEAN, VALUES, VECTORS = (torch.tensor(each).float() for each in (KNOWN.mean, KNOWN.eigenvalues, KNOWN.eigenvectors))
ALPHA_BAR = torch.tensor(schedules.alpha_bar(DIFFUSION_DEFAULTS)).float()
D_EDM, V_EDM = (EDM_DEFAULTS.model_copy(update={"prediction": each}) for each in ("sample", "v_prediction"))
TOLD_1000 = FLOW_DEFAULTS.model_copy(update={"timesteps": 1000})
X0_FLOW, FLOW_MAP = (FLOW_DEFAULTS.model_copy(update={"prediction": its}) for its in ("sample", "average_velocity"))


def expected_x0(x, alpha, sigma):
    """E[x0 | x] for the images of `DATA`."""
    alpha, sigma = alpha.view(-1, 1), sigma.view(-1, 1)
    centred = (x.flatten(1) - alpha * MEAN) @ VECTORS
    gain = alpha * VALUES / (alpha**2 * VALUES + sigma**2)
    return (MEAN + (gain * centred) @ VECTORS.T).view_as(x)


def wide(times):
    return times.view(-1, 1, 1, 1)


def flow(x, t):
    """The optimal velocity, told t in [0, 1]."""
    t = t.clamp(1e-4, 1)
    return (x - expected_x0(x, 1 - t, t)) / wide(t)


def denoised(x, sigma):
    return expected_x0(x, torch.ones_like(sigma), sigma)


def edm(x, c_noise):
    """The optimal F, of c_in x."""
    sigma = wide((4 * c_noise).exp())
    root = (sigma**2 + 0.25).sqrt()
    return (denoised(x * root, sigma) - 0.25 / root**2 * x * root) / (sigma * 0.5 / root)


def ddpm(x, index):
    level = ALPHA_BAR[index.clamp(0, 999).long() + 1]
    return (x - wide(level.sqrt()) * expected_x0(x, level.sqrt(), (1 - level).sqrt())) / wide((1 - level).sqrt())


def own_c_in(x, c_noise):
    """F of x, which scales it itself."""
    return edm(x / ((8 * wide(c_noise)).exp() + 0.25).sqrt(), c_noise)


RIGHT = [
    (flow, FLOW_DEFAULTS),
    (lambda x, t: flow(x, t / 1000), TOLD_1000),
    (lambda x, t: x - wide(t) * flow(x, t), X0_FLOW),
    (edm, EDM_DEFAULTS),
    (denoised, D_EDM),
    (lambda x, c_noise: -edm(x, c_noise), V_EDM),
    (ddpm, DIFFUSION_DEFAULTS),
]


@pytest.mark.parametrize(("network", "diffusion"), RIGHT)
def test_an_optimum_is_not_doubted(network, diffusion):
    assert doubt(network, "my:load", diffusion, DATA, None) is None


COARSE = [
    DIFFUSION_DEFAULTS.model_copy(update={"schedule": "constant", "beta_end": 0.5, "timesteps": 10}),
    EDM_DEFAULTS.model_copy(update={"sigma_min": 2.0}),
]


@pytest.mark.parametrize(("coarse", "least"), [*zip(COARSE, (1.0, 2.0), strict=True)], ids=["ddpm", "edm"])
def test_a_process_may_begin_above_the_levels_that_are_tried(coarse, least):
    process, levels = schedules.process(coarse), []

    def network(x, times):
        levels.append(process.told(float(times[0])).ratio)
        return torch.zeros_like(x)

    doubt(network, "my:load", coarse, DATA, None)
    assert levels == pytest.approx([least] * 3, rel=1e-6)


@pytest.mark.parametrize(
    ("network", "diffusion"),
    [
        (lambda x, t: flow(x, 1 - t), FLOW_DEFAULTS), (lambda x, t: -flow(x, t), FLOW_DEFAULTS),
        (lambda x, t: -flow(x, 1 - t), FLOW_DEFAULTS), (lambda x, t: flow(x, t / 1000), FLOW_DEFAULTS),
        (flow, TOLD_1000), (lambda x, t: x - wide(t) * flow(x, t), FLOW_DEFAULTS),
        (lambda x, c: edm(x, c / 1000), EDM_DEFAULTS), (lambda x, c: edm(x, 1000 * c), EDM_DEFAULTS),
        (own_c_in, EDM_DEFAULTS),
        (lambda x, c: -edm(x, c), EDM_DEFAULTS), (denoised, EDM_DEFAULTS), (edm, D_EDM), (ddpm, FLOW_DEFAULTS),
        (ddpm, EDM_DEFAULTS), (edm, FLOW_DEFAULTS), (flow, EDM_DEFAULTS),
        (lambda x, t: flow(x, t.float()), DIFFUSION_DEFAULTS), (lambda x, t: flow(x, t / 1000), DIFFUSION_DEFAULTS),
        (lambda x, t: edm(x, t.float()), DIFFUSION_DEFAULTS),
    ],
)  # fmt: skip
def test_a_network_that_is_called_otherwise_is_doubted(network, diffusion):
    assert expected(diffusion) in doubt(network, "my:load", diffusion, DATA, None)


@pytest.mark.parametrize("diffusion", [FLOW_DEFAULTS, EDM_DEFAULTS, D_EDM], ids=["flow", "edm", "sample"])
def test_an_untrained_network_is_doubted(diffusion):
    torch.manual_seed(0)
    network = torch.nn.Conv2d(1, 1, 3, padding=1)
    with torch.no_grad():
        recorded(doubt(lambda x, t: network(x), "my:load", diffusion, DATA, None))


def test_what_cannot_be_judged_is_not():
    absent = Data(name="folder", root="/nowhere", shape=SHAPE)
    assert doubt(lambda x, t: 9 * x, "my:load", FLOW_DEFAULTS, absent, None) is None
    assert doubt(lambda x, t: 9 * x, "my:load", CONSISTENCY_DEFAULTS, DATA, None) is None
    assert doubt(lambda x, t, r: 9 * x, "my:load", FLOW_MAP, DATA, None) is None


def test_a_network_of_classes_is_judged_by_the_null_label_or_by_those_of_the_images():
    data, told = Data(name="classes", shape=SHAPE), []

    def network(x, t, label):
        told.append(label.tolist())
        return 0 * x

    for takes in (Conditions(3, 3), Conditions(3, None), Conditions(2, None)):
        doubt(network, "my:load", FLOW_DEFAULTS, data, takes)
    assert {tuple(labels[:4]) for labels in told} == {(3, 3, 3, 3), (0, 1, 2, 0), (0, 1, 0, 0)}


MODULE = """
import torch

seen = []

def load():
    return lambda x, t: seen.append((x, t)) or x

def flow_map():
    def network(x, t, r):
        assert t.dtype == r.dtype == torch.float32
        assert (r < t).all()
        return x
    return network

def any_number():
    inner = lambda x, t, r: x
    return lambda x, *others: inner(x, *others)

def over_r():
    return lambda x, t, r: x + r.mul_(2).view(-1, 1, 1, 1)

def embedding():
    return Embedded()

def broken():
    return lambda x, t: x / 0

class Embedded(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.times = torch.nn.Embedding(1000, 1)

    def forward(self, x, t):
        return x + self.times(t).view(-1, 1, 1, 1)
"""


@pytest.fixture
def module(tmp_path, monkeypatch, asked_here):
    (tmp_path / "called.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)


def tried(name, diffusion):
    return custom.describe(f"called:{name}", None, SHAPE, diffusion.model_dump(mode="json"))


@pytest.mark.parametrize(
    ("diffusion", "times", "largest"),
    [
        (FLOW_DEFAULTS, [0.5, 1.0], 1.0),
        (TOLD_1000, [500.0, 1000.0], 1.0),
        (EDM_DEFAULTS, [math.log(0.002) / 4, math.log(80) / 4], 1.0),
        (D_EDM, [0.002, 80.0], 80.0),
        (CONSISTENCY_DEFAULTS, [schedules.process(CONSISTENCY_DEFAULTS).at(20).time, 250 * math.log(80)], 1.0),
    ],
)
def test_the_trial_calls_a_network_with_what_its_process_tells_it(module, diffusion, times, largest):
    assert tried("load", diffusion).takes_fractions
    import called

    x, t = called.seen[0]
    assert t.dtype == torch.float32
    assert t.tolist() == pytest.approx(times, rel=1e-6)
    assert float(x[1].std()) == pytest.approx(largest, rel=0.2)


@pytest.mark.parametrize(
    ("name", "diffusion", "said"),
    [
        ("load", FLOW_MAP, "positional arguments"), ("flow_map", FLOW_DEFAULTS, "three arguments"),
        ("any_number", FLOW_DEFAULTS, "positional argument"),
        ("embedding", FLOW_DEFAULTS, "torch.float32"), ("over_r", FLOW_MAP, "in place"),
    ],
)  # fmt: skip
def test_a_wrong_arity_or_an_embedding_of_whole_times_is_one_line(module, name, diffusion, said):
    assert tried("flow_map", FLOW_MAP).conditions is None
    with pytest.raises(CustomCodeError) as error:
        tried(name, diffusion)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_nan_comes_with_the_call_that_was_made(module):
    """EDM's D, which takes the logarithm of sigma, is the likeliest network to be called with a negative time."""
    with raises(CustomCodeError):
        tried("broken", EDM_DEFAULTS)


def test_the_default_data_are_data_too(module):
    """Another process is told what differs from the defaults, which is nothing where `data` is digits."""
    said = [
        custom.describe("called:load", None, SHAPE, FLOW_DEFAULTS.model_dump(mode="json"), data).doubt
        for data in ({}, None)
    ]
    assert "digits" in said[0]
    assert said[1] is None


def test_a_doubt_is_said_by_the_plan_and_is_in_no_file(module):
    data = {"name": "gaussian", "shape": [1, 8, 8]}
    found = planned(model={"callable": "called:load"}, data=data, diffusion={"process": "flow"})
    [model] = found.models
    assert model.source.warning(model.diffusion) in found.remarks
    assert "does not denoise" in model.source.warning(model.diffusion)
    assert "doubt" not in model.source.record()
