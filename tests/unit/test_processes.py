"""Continuous processes: EDM's and flow matching's are DDPM's process, scaled, at other noise levels."""

import math

import orders
import pytest
from plans import planned
from snapshots import raises, recorded

from taugrid.config import Diffusion, Sample
from taugrid.errors import UserError
from taugrid.orchestrator.plan.sections import sample_section
from taugrid.workers.diffusion.denoiser import Denoise
from taugrid.workers.diffusion.process import path
from taugrid.workers.diffusion.processes import EDM, Flow
from taugrid.workers.network.checkpoint import Checkpoint
from taugrid.workers.samplers import ddim

EDMS, FLOW = EDM(0.002, 80.0, 7.0, 0.5), Flow()


@pytest.mark.parametrize("name", ["edm", "flow"])
def test_encoding_and_decoding_returns_the_images(name):
    x0, known = 0.1 * orders.X, orders.ORACLES[name]
    errors, denoise = [], Denoise(known.network, known.process)
    for steps in (50, 400):
        visited = path(known.process, known.process.spaced("linear", steps))
        errors.append(float((ddim.decode(ddim.encode(x0, visited, denoise), visited, denoise) - x0).abs().max()))
    assert errors[1] < errors[0] / 6 < 0.03, "first order"


def test_spacings_are_those_of_the_papers():
    levels = EDMS.spaced("karras", 18)
    expected = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert levels == pytest.approx(expected[::-1], rel=1e-11)
    assert EDMS.spaced("linear", 18) == levels
    assert EDMS.spaced("karras", 1) == (80.0,)
    assert EDMS.spaced("logsnr", 3) == pytest.approx((0.002, 0.4, 80), rel=1e-11)
    assert FLOW.spaced("linear", 4) == (0.25, 0.5, 0.75, 1.0)
    assert FLOW.spaced("time_uniform", 4, shift=3.0) == pytest.approx((0.5, 0.75, 0.9, 1.0))
    assert {FLOW.spaced("linear", 3, shift=shift)[-1] for shift in (0.1, 0.3)} == {1.0}, "rounding must not show"
    for process, name in ((EDMS, "time_uniform"), (FLOW, "karras"), (FLOW, "quadratic"), (EDMS, [1, 2])):
        with raises(ValueError):
            process.spaced(name, 2)
    with raises(ValueError):
        FLOW.spaced("logsnr", 2)


def test_points_that_would_share_noise_are_refused():
    with raises(ValueError):
        EDM(1.0, 1.0001, 7.0, 0.5).spaced("linear", 1000)
    keys = [EDMS.at(t).key for t in EDMS.spaced("linear", 1000)]
    assert sorted(set(keys)) == keys
    assert FLOW.at(1.0).key == 2**32 - 1
    assert 1 <= FLOW.at(1e-9).key < FLOW.at(0.999999).key < 2**32 - 1


@pytest.mark.parametrize("process", [EDMS, FLOW, Flow(1000), EDM(0.01, 50, 7, 1, "sample")])
def test_points_are_found_by_what_networks_are_told(process):
    for t in process.spaced("linear", 7):
        at = process.at(t)
        assert process.told(at.time)[:6] == pytest.approx(at[:6], rel=1e-9)
        assert at.scale == pytest.approx(math.hypot(at.alpha, at.sigma), rel=1e-14)
        assert at.alpha_bar == pytest.approx((at.alpha / at.scale) ** 2, rel=1e-12)
        assert process.knows(at)
    assert not process.knows(process.at(0))


def test_tables_name_the_process_of_ddpm_and_a_shift_of_1():
    """Ids know both as null. A shift of 1 that replaces a pipeline's is kept: it would be taken for the pipeline's."""
    assert planned(diffusion={"process": "ddpm"}, dry=True).cells[0].id == planned(dry=True).cells[0].id
    grid = [{"diffusion.process": ["ddpm", "edm"]}, {"diffusion.process": ["flow"], "shift": [1.0, 3.0]}]
    cells = planned(grid=grid, dry=True).cells
    assert [cell.values["diffusion.process"] for cell in cells] == ["ddpm", "edm", "flow", "flow"]
    assert [cell.values["shift"] for cell in cells] == [None, None, 1.0, 3.0]
    assert [cell.settings.shift for cell in cells] == [None, None, None, 3.0]
    for given, pipelines, kept in ((1.0, {}, None), (1.0, {"shift": 3.0}, 1.0), (None, {"shift": 3.0}, 3.0)):
        resolved = sample_section(Sample(shift=given), pipelines)
        assert resolved.shift == kept
        assert sample_section(resolved, pipelines) == resolved


def of_folder(theirs, sample=None, **sections):
    """The plan of a folder whose scheduler says `theirs`, with one of the same network to guide it."""
    sample = {"seed": 0, "batch_size": 256, "shard_evaluations": 50_000} | (sample or {})
    about = {"sample_size": 8, "in_channels": 3}, "ab" * 32, theirs, {}
    given = {"model": {"checkpoint": "/m"}, "data": {}} | sections
    return planned(lambda path: Checkpoint(path, path, *about), sample=sample, **given)


def of_edm(theirs, samplers=("consistency",), **diffusion):
    """The same with `process: edm` in the config."""
    return of_folder(theirs, {"steps": 2}, diffusion={"process": "edm"} | diffusion, grid={"sampler": [*samplers]})


DDPMS = Diffusion(timesteps=1000, schedule="linear", beta_start=1e-4, beta_end=0.02, prediction="epsilon")


@pytest.mark.parametrize("theirs", [Diffusion(), DDPMS], ids=["no scheduler", "DDPM's"])
def test_consistency_models_keep_their_ids(theirs):
    """Those that version 2499d5c6 gave. It took no notice of betas, and let x_T have less noise than images."""
    assert of_edm(theirs).cells[0].id == "8a710033af"
    assert of_edm(theirs, prediction="consistency").cells[0].id == "8a710033af"
    assert of_edm(theirs, sigma_max=0.4).cells[0].id == "40fde932ee"
    with raises(UserError):
        of_edm(Diffusion(), ["euler"], sigma_max=0.4)
    with raises(UserError):
        of_edm(DDPMS, ["euler"])


@pytest.mark.parametrize("samplers", [("consistency", "euler"), ("ddim", "consistency")])
def test_samplers_do_not_read_one_network_in_two_ways(samplers):
    with raises(UserError):
        of_edm(Diffusion(), samplers)
    for prediction in ("consistency", "edm"):
        with pytest.raises(UserError, match=r"sample\.sampler: "):
            of_edm(Diffusion(), samplers, prediction=prediction)
    for alike, prediction in ((["ddim", "euler"], "edm"), (["consistency"], "consistency")):
        assert {model.diffusion.prediction for model in of_edm(Diffusion(), alike).models} == {prediction}


@pytest.mark.parametrize(
    ("process", "interval", "times", "calls"),
    [
        ("edm", [0.1, 5.0], [math.log(0.1) / 4, math.log(5.0) / 4], 2),  # of 0.002, 0.170, 2.48, 17.5, 80
        ("edm", [0.0, 1e6], [math.log(0.002) / 4, math.log(80.0) / 4], 5),
        ("flow", [0.0, 1.0], [0.0, 0.5], 2),  # of 0.25, 0.67, 1.5, 4, infinite
        ("flow", [0.6, 1e6], [0.375, 1e6 / (1e6 + 1)], 3),  # at t = 1 there is no signal: outside of all
    ],
)
def test_an_interval_of_noise_levels_is_one_of_times(process, interval, times, calls):
    sample = {"steps": 5, "guidance": 2.0, "guidance_interval": interval}
    made = of_folder(Diffusion(process=process), sample, model={"checkpoint": "/m", "guide": "/g"})
    [cell], [*_, note] = made.cells, made.notes
    assert cell.guided_calls == cell.guidance.calls == calls
    assert cell.conditions_block["guidance"]["times"] == pytest.approx(times, rel=1e-12)
    recorded(note, "network")


def test_an_interval_outside_of_all_noise_levels_has_no_times():
    assert EDMS.told_within([80.0, 200.0]) == EDMS.told_within([0.0, 0.001]) == []
    assert EDMS.told_within([0.0, 0.002]) == [math.log(0.002) / 4] * 2, "it is closed above"


@pytest.mark.parametrize(
    "sections",
    [
        {"diffusion": {"process": "flow", "sigma_max": 3.0}}, {"diffusion": {"process": "edm", "beta_end": 0.1}},
        {"diffusion": {"process": "edm", "timesteps": 9}}, {"diffusion": {"process": "flow", "prediction": "edm"}},
        {"diffusion": {"process": "edm", "sigma_max": 0.3}}, {"diffusion": {"process": "edm", "sigma_max": 0.001}},
        {"diffusion": {"process": "flow"}, "sample": {"spacing": "karras"}},
        {"diffusion": {"process": "edm"}, "sample": {"spacing": [1, 2], "steps": 2}}, {"sample": {"shift": 3.0}},
        {"diffusion": {"process": "flow"}, "sample": {"shift": 1e-20}},
        {"diffusion": {"process": "flow"}, "sample": {"shift": 101}},
        {"grid": [{"diffusion.process": [each]} for each in (None, "ddpm")]},
        {"diffusion": {"process": "flow"}, "sample": {"sampler": "diffusers:DDIMScheduler"}},
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(sections):
    with raises(UserError):
        planned(**sections, dry=True)
