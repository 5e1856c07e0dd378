"""The networks that docs/custom-network.md and samplers.md show: trained for seconds on digits, and sampled."""

import math
import re
import textwrap
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

import taugrid
from taugrid.config import CONSISTENCY_DEFAULTS, EDM_DEFAULTS, FLOW_DEFAULTS, Config, Data, validate
from taugrid.workers import schedules
from taugrid.workers.network import custom

pytestmark = pytest.mark.usefixtures("one_thread")

PAGE, SAMPLERS = (
    (Path(__file__).parents[2] / "docs" / page).read_text() for page in ("custom-network.md", "samplers.md")
)
SHAPE = (1, 8, 8)
IMAGES = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
LABELS = torch.tensor(load_digits().target)
D_EDM = EDM_DEFAULTS.model_copy(update={"prediction": "sample"})


def example(name):
    [block] = re.findall(rf"^`{name}`[^\n]*:\n\n((?: {{4}}[^\n]*\n|\n)+)", PAGE + SAMPLERS, re.MULTILINE)
    return textwrap.dedent(block).strip() + "\n"


@pytest.fixture
def module(tmp_path, monkeypatch, asked_here):
    """A function that gives a module of the page's, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def made(name):
        text = example(f"{name}.py")
        assert len(text.splitlines()) <= 30, "short enough to be read"
        (tmp_path / f"{name}.py").write_text(text)
        torch.manual_seed(0)  # networks that tests make of it begin alike, whatever tests this process ran before
        return import_module(name)

    return made


def train(network, loss, steps, batch, learning_rate=2e-3, file="weights.pt"):
    """Adam on batches of digits; saves the weights where the config looks for them."""
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    for _ in range(steps):
        chosen = torch.randint(len(IMAGES), (batch,))
        optimizer.zero_grad()
        loss(IMAGES[chosen], LABELS[chosen]).backward()
        optimizer.step()
    torch.save(network.state_dict(), file)


def sampled(name, count, diffusion, **settings):
    """Images in [-1, 1] of the module's network, whose convention is not doubted."""
    data = Data(name="digits").model_dump(mode="json")
    described = custom.describe(f"{name}:load", "weights.pt", SHAPE, diffusion.model_dump(mode="json"), data)
    assert described.doubt is None
    model = {"callable": f"{name}:load", "weights": "weights.pt"}
    section = diffusion.model_dump(include={"process", "prediction"})
    return taugrid.sample(model, count, shape=SHAPE, diffusion=section, seed=0, **settings) / 127.5 - 1


def test_a_preconditioned_network_is_sampled(module):
    """NVlabs' loss, weight and log-normal noise levels. The samples have the mean and the spread of the digits."""
    network = module("edm_network").Preconditioned()

    def loss(x0, labels):
        sigma = (1.2 * torch.randn(len(x0)) - 1.2).exp().view(-1, 1, 1, 1)
        weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
        return (weight * (network(x0 + sigma * torch.randn_like(x0), sigma.flatten()) - x0) ** 2).mean()

    train(network, loss, 400, 128)
    found = sampled("edm_network", 200, D_EDM, sampler="heun", steps=10).reshape(200, -1)
    x0 = IMAGES.flatten(1).numpy()
    assert np.abs(found.mean(0) - x0.mean(0)).mean() < 0.12
    assert np.abs(found.std(0) - x0.std(0)).mean() < 0.12
    components = np.linalg.svd(x0 - x0.mean(0), full_matrices=False)[2][:20]
    explained = np.square((found - x0.mean(0)) @ components.T).sum() / np.square(found - x0.mean(0)).sum()
    assert explained > 0.75, "most of it is where digits vary"


@pytest.mark.long
def test_a_transformer_with_classes_is_sampled(module):
    """Of most classes, the mean of the samples is nearest to that of the class's digits."""
    network = module("sit").SiT()

    def loss(x0, labels):
        t, eps = torch.rand(len(x0)), torch.randn_like(x0)
        at = t.view(-1, 1, 1, 1)
        labels = torch.where(torch.rand(len(x0)) < 0.1, 10, labels)
        return (network((1 - at) * x0 + at * eps, t, labels) - (eps - x0)).square().mean()

    train(network, loss, 300, 64, 4e-3)
    labels = [label for label in range(10) for _ in range(10)]
    found = sampled("sit", 100, FLOW_DEFAULTS, sampler="euler", steps=12, labels=labels)
    means = np.stack([IMAGES[label == LABELS][:, 0].mean(0).numpy().ravel() for label in range(10)])
    drawn = found.reshape(10, 10, -1).mean(1)
    nearest = ((drawn[:, None] - means) ** 2).sum(-1).argmin(1)
    assert (nearest == np.arange(10)).sum() >= 6, "one of ten is chance"
    assert math.isclose(found.std(), float(IMAGES.std()), rel_tol=0.15)


def test_students_are_sampled_as_their_configs_say(module):
    """Without distillation, they learn where the ODE's first step leads from noise: to the mean of the digits."""
    few_steps, process = module("few_steps"), schedules.process(CONSISTENCY_DEFAULTS)

    def flow_map(x0, labels):
        t, eps = torch.rand(len(x0)), torch.randn_like(x0)
        at = t.view(-1, 1, 1, 1)
        return (network((1 - at) * x0 + at * eps, t, t * torch.rand(len(x0))) - (eps - x0)).square().mean()

    def consistency(x0, labels):
        at = process.at(int(torch.randint(2, 41, ())))
        x, scaling = x0 + at.sigma * torch.randn_like(x0), process.preconditioning(at)
        wanted = (x0 - scaling.skip * x) / scaling.out
        return (network(scaling.into * x, torch.full((len(x0),), at.time)) - wanted).square().mean()

    blocks = map(textwrap.dedent, re.findall(r"(?: {4}[^\n]*\n)+", SAMPLERS))
    flow, jump = (yaml.safe_load(block) for block in blocks if "few_steps:" in block)
    for config, loss, times, largest in ((flow, flow_map, 2, 1), (jump, consistency, 1, 1000)):
        validate(Config, config, config["name"])
        network = few_steps.Network(times, largest)
        train(network, loss, 200, 64, file=config["model"]["weights"])
        settings = {"diffusion": config["diffusion"], "sampler": config["sample"]["sampler"], "seed": 0}
        for steps in config["grid"]["steps"]:
            found = taugrid.sample(config["model"], 50, shape=SHAPE, steps=steps, **settings) / 127.5 - 1
            assert np.abs(found.mean(0) - IMAGES[:, 0].numpy().mean(0)).mean() < 0.15, (config["name"], steps)
