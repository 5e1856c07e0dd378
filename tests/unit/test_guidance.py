"""Guidance and guides in plans: identities, names, ignored keys, evaluations, and what is refused."""

import json
import re

import numpy as np
import plans
import pytest
from snapshots import raises, recorded

from taugrid.config import Diffusion
from taugrid.errors import MissingInput, UserError
from taugrid.grids import Naming
from taugrid.orchestrator.plan import record
from taugrid.orchestrator.plan.grid import with_settings
from taugrid.workers import schedules
from taugrid.workers.network.checkpoint import Checkpoint

FOLDERS = {
    "/m/net": {},
    "/m/weak": {},
    "/m/bare": {"diffusion": Diffusion()},
    "/m/large": {"size": 16},
    "/m/cosine": {"diffusion": Diffusion(timesteps=1000, schedule="cosine")},
    "/m/short": {"diffusion": Diffusion(timesteps=100)},
    "/m/classes": {"num_class_embeds": 11, "null_label": 10},
    "/m/weak-classes": {"num_class_embeds": 10},
    "/m/other-classes": {"num_class_embeds": 7},
    "/m/v": {"diffusion": Diffusion(prediction="v_prediction")},
}
"""Folders of checkpoints, and what is special about each."""


def read(path):
    """A fake `read_checkpoint`."""
    if path not in FOLDERS:
        raise MissingInput(f"model.checkpoint: no folder {path!r}; give a diffusers folder")
    special = FOLDERS[path]
    unet = {"sample_size": special.get("size", 8), "in_channels": 3} | {k: v for k, v in special.items() if "_" in k}
    return Checkpoint(path, path, unet, path.rjust(64, "0"), special.get("diffusion", Diffusion(timesteps=1000)), {})


def planned(dry=False, checkpoint="/m/net", **sections):
    model = {"checkpoint": checkpoint, **sections.pop("model", {})}
    sample = {"steps": 5, **sections.pop("sample", {})}
    return plans.planned(read, dry, model=model, data={}, sample=sample, **sections)


def guided(**sample):
    return {"model": {"guide": "/m/weak"}, "sample": {"guidance": 2.0, **sample}}


def test_guidance_1_is_the_cell_without_any_of_its_keys():
    plain = planned().cells
    keys = {"guidance_interval": [[0.1, 1.0]], "model.guide": ["/m/weak"], "guidance_channels": [2]}
    both = planned(grid=[{"guidance": [1, 3], **keys}])
    assert [cell.id for cell in both.cells][:1] == [plain[0].id]
    assert both.cells[0].guide is None
    assert [cell.nfe for cell in both.cells] == [5, 5 + both.cells[1].guided_calls]
    recorded("\n".join(both.notes), "guidance")


def test_scale_interval_channels_and_the_guides_weights_make_cells_and_nothing_makes_another_model():
    other = [{"guidance": 3.0}, {"guidance_interval": [0.1, 2]}, {"guidance_channels": 2}]
    cases = [guided(), *(guided(**keys) for keys in other), {**guided(), "model": {"guide": "/m/bare"}}, {}]
    found = [planned(**case) for case in cases]
    assert len({each.cells[0].id for each in found}) == len(cases)
    assert len({each.models[0].id for each in found}) == 1


def test_a_guide_belongs_to_the_names_of_cells_not_to_those_of_models():
    found = planned(grid=[{"model.guide": ["/m/weak", "/m/bare"], "guidance": [2], "model.checkpoint": ["/m/net"]}])
    cells = found.cells
    recorded("\n".join([cell.label for cell in cells]))
    points = [{"model.guide": "/a", "model.oracle": name} for name in ("p", "q")]
    assert Naming.of(points, ()).model(points[1]) == "oracle=q"


def test_guided_calls_count_twice():
    cell = planned(**guided(guidance_interval=[0.1, 2.0])).cells[0]
    process = schedules.process(cell.model.diffusion)
    ratios = [process.at(t + 1).ratio for t in cell.sampler_description.times]
    assert cell.guidance.calls == sum(0.1 < ratio <= 2.0 for ratio in ratios) == cell.nfe - 5
    assert 0 < cell.guidance.calls < 5
    assert planned(**guided()).cells[0].nfe == 10
    no_signal = {"rescale_betas_zero_snr": True, "prediction": "v_prediction"}
    cell = planned(**guided(guidance_interval=[0.1, 1e6], spacing="trailing"), diffusion=no_signal).cells[0]
    assert cell.guidance.calls == 4, "a last time without signal is outside every interval"


def test_an_interval_is_open_below_and_closed_above_also_after_rounding():
    process = schedules.process(planned().models[0].diffusion)
    low, high = (process.at(t) for t in (100, 200))
    for towards in (0, np.inf, None):  # the last bit decides nothing
        ends = [at.ratio if towards is None else np.nextafter(at.ratio, towards) for at in (low, high)]
        assert not low.is_within(ends)
        assert high.is_within(ends)
        assert planned(**guided(guidance_interval=ends, spacing=[50, 100, 150, 200, 900])).cells[0].guided_calls == 2


def test_a_recorded_plan_has_its_guides():
    before = planned(grid=[{"guidance": [1, 2], "model.guide": ["/m/weak"]}])
    value = json.loads(json.dumps(record.to_json(before)))
    assert [each["id"] for each in value["guides"]] == [before.cells[1].guide.id]
    after = record.from_json(value)
    assert [cell.guide for cell in after.cells] == [cell.guide for cell in before.cells]
    assert after.cells == before.cells
    assert "guides" not in record.to_json(planned())


def test_a_cell_with_other_settings_keeps_its_guide_unless_it_is_not_guided_any_more():
    cell = planned(**guided()).cells[0]
    more = with_settings(cell, {"num_samples": 7})
    assert (more.id, more.guide) == (cell.id, cell.guide)
    assert with_settings(cell, {"guidance": 1.0}).id == planned().cells[0].id


@pytest.mark.parametrize(
    "sections",
    [
        {"sample": {"guidance": 2}}, {**guided(), "model": {"guide": "/m/gone"}},
        {**guided(), "model": {"guide": "/m/large"}}, {**guided(), "model": {"guide": "/m/v"}},
        {**guided(), "model": {"guide": "/m/short"}}, {**guided(), "model": {"guide": "/m/cosine"}},
        {**guided(), "model": {"guide": "/m/weak-classes"}},
        {**guided(labels="random"), "model": {"guide": "/m/other-classes"}, "checkpoint": "/m/classes"},
        {"sample": {"guidance": 2, "labels": 3}, "checkpoint": "/m/weak-classes"}, guided(guidance_channels=4),
        guided(guidance_interval=[200, 300]), {"sample": {"guidance_interval": [0.1, 1]}},
        {"model": {"guide": "/m/weak"}},
    ],
)  # fmt: skip
def test_what_can_not_be_guided_is_refused_in_one_line(sections):
    with raises(UserError):
        planned(**sections)


def test_an_interval_without_a_call_is_refused_with_the_nearest_calls():
    with raises(UserError) as refused:
        planned(**guided(guidance_interval=[1.5, 1.51]))
    assert re.findall(r"\d+\.\d+", str(refused.value)) == ["1.5", "1.51", "0.719", "0.719", "2.03"]


@pytest.mark.parametrize(("guide", "has_labels"), [(None, False), ("/m/weak", False), ("/m/weak-classes", True)])
def test_classes_are_guided_by_the_null_class_or_by_a_guide_with_or_without_labels(guide, has_labels):
    sample = {"guidance": 2.0, "labels": "balanced"}
    cell = planned(checkpoint="/m/classes", sample=sample, model={"guide": guide}).cells[0]
    assert (cell.guidance.null_label, cell.guidance.guide_has_labels) == (10, has_labels)
    assert cell.conditions_block["labels"] == "balanced"
    assert cell.conditions_block["guidance"].get("guide") == (cell.guide and cell.guide.id)


def test_an_interval_is_said_in_the_networks_times():
    found = planned(
        grid=[{"model.guide": ["/m/weak"], "guidance": [2], "steps": [10, 100]}],
        **guided(guidance_interval=[0.34, 1.02]),
    )
    process, cells = schedules.process(found.models[0].diffusion), found.cells
    times = [t for t in range(1000) if 0.34 < process.at(t + 1).ratio <= 1.02]
    assert cells[0].conditions_block["guidance"]["times"] == [times[0], times[-1]]
    recorded("\n".join(found.notes), "network")


def test_a_guide_without_a_scheduler_is_for_the_models_process():
    """A bare folder's defaults would be linear betas."""
    cell = planned(checkpoint="/m/cosine", **{**guided(), "model": {"guide": "/m/bare"}}).cells[0]
    assert cell.guide.diffusion.schedule == "cosine"


def test_a_plan_prices_cells_whose_guide_is_missing():
    cells = planned(dry=True, **{**guided(), "model": {"guide": "/m/gone"}})
    assert cells.cells[0].nfe == 10
    assert cells.cells[0].shown_id == "pending"
    recorded(cells.remarks[0], "folder")


def test_all_but_1_is_guidance():
    assert [planned(**guided(guidance=scale)).cells[0].nfe for scale in (0.0, 0.5, 2.0)] == [10] * 3
