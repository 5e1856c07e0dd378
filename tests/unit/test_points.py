"""The points of grids with keys that vary together and points that are left out."""

import pytest
from snapshots import raises, recorded
from test_grid import planned

from taugrid.errors import UserError
from taugrid.orchestrator.plan.patterns import resolve_patterns
from taugrid.orchestrator.plan.trust import custom_code


def labels(grid):
    return [cell.label for cell in planned(grid=grid).cells]


def test_zipped_keys_vary_together_and_the_rest_is_their_product():
    zipped = {"train.steps": [10, 20], "diffusion.schedule": ["linear", "cosine"]}
    recorded("\n".join(labels({"zip": zipped, "steps": [5, 6]})))
    two = {"zip": [{"steps": [5, 6], "batch_size": [1, 2]}, {"eta": [0.0, 1.0], "clip": ["none", "x0"]}]}
    recorded("\n".join(labels(two)[:3]))


def test_excluded_points_make_no_cell_and_the_others_keep_their_ids():
    grid = {"diffusion.schedule": ["linear", "cosine"], "steps": [10, 1000], "eta": [0.0, 1.0]}
    whole = planned(grid=grid)
    part = planned(grid=grid | {"exclude": [{"schedule": "cosine", "steps": 1000}, {"eta": 1.0, "steps": 10}]})
    left = [cell for cell in whole.cells if (cell.model.diffusion.schedule, cell.settings.steps) != ("cosine", 1000)]
    left = [cell for cell in left if (cell.settings.eta, cell.settings.steps) != (1.0, 10)]
    assert part.cells == tuple(left)
    assert len(left) == 4
    assert len(planned(grid=grid | {"exclude": {"schedule": "cosine"}}).models) == 1


@pytest.mark.parametrize(
    "grid",
    [{"zip": {"steps": [5, 6], "eta": [0.0]}}, {"zip": {"steps": [5, 6]}, "steps": [7]}, {"zip": [5]},
     {"zip": {"steps": 5}}, *({"steps": [5], "exclude": left_out} for left_out in
                              ([{"steps": 50}], [{"schedule": "cosine"}], [{"steps": 5}], "cosine", []))],
)  # fmt: skip
def test_what_is_wrong_with_a_grid_is_said_in_a_line(grid):
    with raises(UserError):
        planned(grid=grid)


def test_zipped_keys_are_keys_everywhere(tmp_path):
    from taugrid.config.load import load

    file = tmp_path / "c.yaml"
    file.write_text("name: c\ngrid: {zip: {model.callable: ['a:f', 'b:g'], steps: [5, 6]}}\n")
    config = load(str(file))
    assert [code.name for code in custom_code(config)] == ["a:f", "b:g"]
    with pytest.raises(UserError, match="changes nothing"):
        load(str(file), ["sample.steps=7"])
    file.write_text(f"name: c\ngrid: {{zip: {{model.checkpoint: ['{tmp_path}/step-*'], steps: [5]}}}}\n")
    with raises(UserError):
        resolve_patterns(load(str(file)), [])
