"""Each key that is wrong gives one sentence: the key, all that it may be, and what it is."""

from pathlib import Path

import pytest
from snapshots import raises, recorded

from taugrid.config import Config, Diffusion, Train, schema, validate
from taugrid.config.load import load, merge
from taugrid.config.section import NOT_YET, not_yet
from taugrid.errors import UserError
from taugrid.orchestrator.plan.grid import plan

MINIMAL = {"name": "x", "model": {"unet": {}}}


def refusal(values: dict, cls=Config) -> str:
    with pytest.raises(UserError) as caught:
        validate(cls, MINIMAL | values if cls is Config else values, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    return message.removeprefix("my.yaml: ")


@pytest.mark.parametrize(
    "values",
    [
        {"sample": {"steps": 0}},
        {"sample": {"steps": "10x"}},
        {"sample": {"eta": 1.5}},
        {"sample": {"eta": "sigma"}},
        {"sample": {"eta": [1]}},
        {"sample": {"clip": "yes"}},
        {"sample": {"clip_range": 0}},
        {"sample": None},
        {"name": "../x"},
        {"sample": {"steps": True}},
        {"sample": {"steps": "10"}},
        {"sample": {"eta": "0.5"}},
        {"sample": {"spacing": [1, True]}},
        {"train": {"flip": 1}},
        {"seed": 2**63},
        {"seed": -1},
        {"data": {"shape": [1, 2]}},
        {"data": {"shape": [1, 2, "a"]}},
        {"data": {"shape": 5}},
        {"train": {"learning_rate": float("inf")}},
        {"train": {"ema_decay": 1}},
        {"train": {"flip": 3}},
        {"train": {"workers": [0, 2]}},
        {"diffusion": {"trained_betas": []}},
        {"diffusion": {"beta_end": 2}},
        {"cluster": {"gpus_per_worker": -1}},
        {"model": {"unet": {"up_block_types": ["Foo"]}}},
        {"evaluate": {"reference": 5}},
        {"evaluate": {"reference": {"name": "foo"}}},
        {"evaluate": {"metrics": "fid"}},
        {"evaluate": {"metrics": ["foo"]}},
        {"grid": [5]},
        {"grid": 3},
    ],
)
def test_a_key_gives_one_sentence_however_many_branches_it_has(values):
    message = refusal(values)
    assert message.count("must be") == 1
    recorded(message)


@pytest.mark.parametrize("spacing", ["cubic", [1, 0], [1, "a"], []])
def test_a_spacing_is_a_name_or_times(spacing):
    message = refusal({"sample": {"spacing": spacing}})
    assert message.count("must be") == 1
    recorded(message)


def test_a_number_with_an_exponent_is_text_in_yaml_and_a_truth_in_a_grid_is_no_number():
    assert validate(Train, {"learning_rate": "2e-4"}, "t").learning_rate == 2e-4
    with raises(UserError):
        plan(load({**MINIMAL, "grid": {"steps": [True]}}))


def test_of_a_long_list_the_wrong_item_is_shown():
    message = refusal({"trained_betas": [0.1] * 999 + [2.0]}, Diffusion)
    assert message.startswith("trained_betas: ")
    assert message.endswith(", not 2.0")


def test_each_key_has_its_sentence():
    message = refusal({"train": {"loss_weights": {"eta": 0, "sigma_1": "s"}}, "seed": -1})
    keys = ["seed", "train.loss_weights.eta", "train.loss_weights.sigma_1"]
    assert [text.partition(":")[0] for text in message.split("; ")] == keys


@pytest.mark.parametrize(
    "values",
    [
        {"data": "/my/images"},
        {"model": "/my/model"},
        {"data": {"root": "/x"}},
        {"data": {"name": "fashionmnist"}},
        {"data": {"name": "fashion-mnist", "split": "valid"}},
    ],
)
def test_a_section_in_short_is_told_how_to_be_written(values):
    recorded(refusal(values))


def test_the_only_mapping_of_a_list_is_not_one_of_each():
    with raises(UserError):
        merge({"grid": [{"steps": [5]}]}, ["grid.steps=[1]"])


def test_a_data_set_that_was_named_is_not_called_the_default():
    assert "unless you" not in refusal({"data": {"name": "digits", "root": "/x"}})


def test_a_missing_key_is_named():
    recorded(refusal({"train": {"loss_weights": {}}}))


@pytest.mark.parametrize(
    "values",
    [
        {"comet": {"project": "p"}},
        {"sample": {"condition": 1}},
        {"prompts": ["a cat"]},
        {"model": {"lora": "a/b"}},
    ],
)
def test_a_key_of_what_is_not_supported_yet_is_no_unknown_one(values):
    message = refusal(values)
    recorded(message, "supported")
    assert "unknown key" not in message


@pytest.mark.parametrize("values", [{"wandb": {"project": "p"}}, {"train": {"mlflow": True}}, {"trackers": ["wandb"]}])
def test_what_others_call_trackers_is_named_as_it_is_here(values):
    recorded(refusal(values), "tensorboard")


def test_every_feature_that_is_lacking_is_on_the_page_of_limits():
    page = (Path(__file__).parents[2] / "docs" / "limits.md").read_text().lower()
    assert [feature for feature in NOT_YET if feature not in page] == []


def test_what_others_call_guidance_is_named_as_it_is_here():
    meant = "write sample.guidance; 1 is none, as in diffusers (w of Ho & Salimans' paper is guidance - 1)"
    assert refusal({"sample": {"guidance_scale": 7.5}}) == f"'sample.guidance_scale': {meant}"
    config = load({"name": "x", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}, "grid": {"cfg": [1.0]}})
    with raises(UserError):
        plan(config)


def test_what_others_call_labels_is_named_as_it_is_here():
    meant = "write sample.labels, as in labels: balanced (docs/models.md, Networks with classes)"
    assert refusal({"sample": {"class_labels": 7}}) == f"'sample.class_labels': {meant}"
    recorded(refusal({"sample": {"vae": "a/b"}}), "folder")
    recorded(refusal({"model": {"num_classes": 7}}), "write")


def test_labels_of_a_file_are_shown_as_they_are_written():
    recorded(refusal({"sample": {"labels": "x"}}), "balanced")


def test_an_interval_upside_down_is_refused():
    wrong = "sample.guidance_interval: must be [low, high], two noise levels sigma, with low below high, not [1.0, 0.3]"
    assert refusal({"sample": {"guidance_interval": [1.0, 0.3]}}) == wrong
    recorded(refusal({"sample": {"guidance_interval": [1.0]}}), "numbers")
    recorded(refusal({"sample": {"guidance": -1}}))


def test_no_key_that_there_is_counts_as_not_supported():
    def names(node):
        if isinstance(node, dict):
            yield from node.get("properties", ())
            for inner in node.values():
                yield from names(inner)
        elif isinstance(node, list):
            for inner in node:
                yield from names(inner)

    known = set(names(schema()))
    assert {"label_selector", "batch_size"} <= known
    elsewhere = {"vae", "num_classes"}  # keys of one section, which users write in another
    assert [key for key in known - elsewhere if not_yet(key)] == []


def test_an_unknown_key_in_a_branch_of_a_union_is_said_as_people_wrote_it():
    message = refusal({"evaluate": {"reference": {"name": "digits", "splt": "test"}}})
    recorded(message)


def test_a_mistake_of_the_whole_section_needs_no_key():
    recorded(refusal({"batch_size": 2, "workers": 3}, Train), "workers")


def test_a_mistake_in_an_assignment_is_not_the_files(tmp_path):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("{name: x, model: {unet: {}}}")
    bad.write_text("{name: x, model: {unet: {}}, smaple: {steps: 5}}")
    for file, blamed, not_blamed in ((good, "--set smaple=1", "good.yaml"), (bad, "bad.yaml", "--set")):
        with pytest.raises(UserError) as refused:
            load(str(file), ["smaple=1" if file == good else "seed=1"])
        assert "'smaple'" in str(refused.value)
        assert blamed in str(refused.value)
        assert not_blamed not in str(refused.value)
