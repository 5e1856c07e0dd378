"""Readable names of models and cells, and their selection by settings."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from snapshots import raises, recorded
from test_grid import planned

from taugrid.errors import UserError
from taugrid.grids import MAX_VALUE_LENGTH, Naming, chosen, fits, parse, plain_text, short_keys, value_text
from taugrid.orchestrator.selection import find_cell, select

TWO_KEYS = {"diffusion.schedule": ["linear", "cosine"], "train.learning_rate": [1e-3, 2e-4], "steps": [10, 50]}


def test_models_and_cells_are_named_by_the_grids_keys_in_its_order():
    plan = planned(grid=TWO_KEYS)
    assert [model.label for model in plan.models] == [
        "schedule=linear learning_rate=0.001", "schedule=linear learning_rate=0.0002",
        "schedule=cosine learning_rate=0.001", "schedule=cosine learning_rate=0.0002",
    ]  # fmt: skip
    recorded(plan.cells[5].label)
    assert "learning_rate=0.001" in plan.cells[5].label


def test_a_key_whose_texts_are_those_of_another_is_left_out_and_numbers_that_agree_are_kept():
    points = [{"model.oracle": t, "data.name": t, "steps": n, "train.steps": n} for t, n in (("a", 1), ("b", 2))]
    assert Naming.of(points, ()).keys == ("model.oracle", "steps", "train.steps")


def test_the_only_model_is_called_by_its_id_and_cells_by_what_differs():
    one = {"steps": [10], "weights": ["ema"]}
    plan = planned(grid=[one | {"eta": [0.5]}, one | {"eta": ["sigma_hat"], "clip": ["x0"]}])
    assert (plan.models[0].label, plan.models[0].called) == ("", plan.models[0].id)
    recorded("\n".join([cell.label for cell in plan.cells]))


@pytest.mark.parametrize(
    ("keys", "short"),
    [
        (["diffusion.schedule", "steps"], ["schedule", "steps"]),
        (["train.steps", "model.unet.dropout"], ["train.steps", "dropout"]),  # `steps` alone is a key of sample
        (["data.name", "model.name"], ["data.name", "model.name"]),
    ],
)
def test_a_key_is_as_short_as_it_can_be(keys, short):
    assert list(short_keys(keys, {"steps", "seed"}).values()) == short


VALUES = st.one_of(
    st.booleans(), st.none(), st.integers(-(10**6), 10**6), st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=60), st.lists(st.integers(0, 1000), max_size=30),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(VALUES, VALUES)
@example('say "it\'s"', {"a": "it's"})
@example({"a": "it's"}, "''")
def test_other_values_have_other_texts_and_a_name_reads_back(a, b):
    alike = a == b and (type(a) is type(b) or (isinstance(a, int | float) and isinstance(b, int | float)))
    if not alike and not isinstance(a, str) and not isinstance(b, str):
        assert value_text(a) != value_text(b)
    [(key, value), steps] = parse(f"key={value_text(a)} · S=10")
    assert (key, steps) == ("key", ("S", "10"))
    assert fits(a, value) or len(plain_text(a)) > MAX_VALUE_LENGTH


def test_long_lists_are_cut_but_stay_apart():
    one, other = ([1, *range(10, 900, step), 1000] for step in (2, 3))
    assert value_text(one) != value_text(other)
    assert len(value_text(one)) < 45


def test_a_column_of_labels_is_named_by_its_file_and_two_of_one_name_are_told_apart():
    one, other = ({"parquet": f"/home/me/labels/{folder}/train.parquet", "column": "y"} for folder in "ab")
    assert re.fullmatch(r'"y of \S+ [0-9a-f]{6}"', value_text(one))
    assert value_text(one) != value_text(other)


def test_a_cell_is_named_by_settings_by_its_label_as_in_a_table_and_by_its_id():
    plan = planned(grid=TWO_KEYS)
    for selector in (
        "steps=50,schedule=cosine,learning_rate=2e-4", "S=50, train.learning_rate=0.0002, diffusion.schedule=cosine",
        "schedule=cosine learning_rate=0.0002 · S=50 eta=0", plan.cells[7].id, plan.cells[7].name, plan.cells[7].id[:7],
    ):  # fmt: skip
        assert find_cell(plan, selector) is plan.cells[7]
    plan = planned(grid={"steps": [1, 2], "eta": [0.0, "sigma_hat"]}, sample={"weights": "raw"})
    for selector in ("eta=σ̂,S=2", "η=sigma_hat S=2", "weights=raw,steps=2,eta=sigma_hat"):
        assert find_cell(plan, selector) is plan.cells[3]


@pytest.mark.parametrize(
    "selector",
    ["schedule=cosine,S=50", "schedule=sigmoid", "steps=10,learning_rate=1", "colour=red", "steps=", "S0010", "zzz"],
)
def test_a_selector_that_names_no_single_cell_says_which_there_are(selector):
    with raises(UserError):
        find_cell(planned(grid=TWO_KEYS), selector)


def test_a_part_of_a_plan_has_the_cells_that_any_selector_fits_and_their_models():
    plan = planned(grid=TWO_KEYS)
    part = select(plan, ["schedule=cosine,S=10", "learning_rate=0.001 S=50"])
    recorded("\n".join([cell.label for cell in part.cells]))
    assert [model.label for model in part.models] == [plan.models[i].label for i in (0, 2, 3)]
    assert select(plan, []) is plan


def test_a_key_without_a_value_selects_nothing():
    for selector in ("", "schedule", "steps"):
        with raises(UserError):
            select(planned(grid=TWO_KEYS), [selector])


def test_a_sampling_seed_is_not_one_of_training():
    plan = planned(grid={"train.seed": [0, 1], "steps": [3]})
    with raises(UserError):
        find_cell(plan, "seed=1")
    assert find_cell(plan, "train.seed=1") is plan.cells[1]


def test_a_path_is_named_by_whole_parts_and_a_number_is_no_truth():
    assert fits("runs/step-10", "step-10")
    assert not fits("runs/step-10", "10")
    assert fits(1, 1)
    assert not fits(1, True)
    options = {"karras": True, "order": 2}
    texts = ("{karras: true, order: 2}", '{"order": 2, "karras": true}', "{karras: true}", "{karras: [")
    assert [fits(options, text) for text in texts] == [True, True, False, False]


def test_selectors_read_numbers_as_configs_do():
    """The floats of YAML 1.2, which need neither a point nor a sign in the exponent."""
    assert fits([0.5, 2.0], "[5e-1, 2]")
    assert fits({"S_churn": 40.0}, "{S_churn: 4e1}")


def test_options_are_selected_as_tables_write_them():
    """Tables and `plan` write a cell's options as S_churn=40 S_noise=1.003 and as a quoted mapping: either is taken."""
    points = [{"sampler_options": {"S_churn": 40, "S_noise": 1.003}}, {"sampler_options": {"S_churn": 4}}, {}]
    short = {"sampler_options": "sampler_options"}
    assert chosen("S_churn=40 S_noise=1.003", points, short) == chosen("S_churn=40", points, short) == [0]
    assert chosen("S_churn=4", points, short) == [1]
    assert chosen(f"sampler_options={value_text(points[0]['sampler_options'])}", points, short) == [0]
    with raises(UserError):
        chosen("S_churn=5", points, short)
    with raises(UserError):
        chosen("order=3", points, short)
