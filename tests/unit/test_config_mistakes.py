"""Each key that is wrong gives one sentence: the key, what pydantic or a validator says, and what it is."""

import json
from contextlib import nullcontext

import pytest
import yaml
from snapshots import raises, recorded

from taugrid.config import Config, Diffusion, Train, validate
from taugrid.config.load import find, load, merge
from taugrid.errors import UserError
from taugrid.orchestrator.plan.grid import plan
from taugrid.run_id import claim
from taugrid.storage import LOCAL

MINIMAL = {"name": "x", "model": {"unet": {}}}

WRONG = {
    "sampel": [{}],
    "name": ["../x"],
    "seed": [2**63, -1],
    "sample": [
        None, {"step": 3}, {"steps": 0}, {"steps": "10x"}, {"steps": "10"}, {"steps": True}, {"eta": 1.5},
        {"eta": "sigma"}, {"eta": [1]}, {"eta": "0.5"}, {"clip": "yes"}, {"clip_range": 0}, {"spacing": "cubic"},
        {"spacing": [1, 0]}, {"spacing": [1, "a"]}, {"spacing": []}, {"spacing": [1, True]}, {"labels": "x"},
        {"guidance": -1}, {"guidance_interval": [1.0, 0.3]}, {"guidance_interval": [1.0]},
        {"condition": 1}, {"guidance_scale": 7.5}, {"class_labels": 7}, {"vae": "a/b"},
    ],
    "train": [
        {"batch_size": 2, "workers": 3}, {"flip": 1}, {"flip": 3}, {"learning_rate": float("inf")}, {"ema_decay": 1},
        {"workers": [0, 2]}, {"loss_weights": {}}, {"loss_weights": {"eta": 0, "sigma_1": "s"}}, {"mlflow": True},
    ],
    "data": [
        {"shape": [1, 2]}, {"shape": [1, 2, "a"]}, {"shape": 5}, "/my/images", {"root": "/x"}, {"name": "fashionmnist"},
        {"name": "fashion-mnist", "split": "valid"}, {"name": "digits", "root": "/x"}, {"name": ["digits"]},
        {"name": "digits", "root": "/a", "download": True}, {"name": "cifar10", "shape": [3, 32, 32]},
        {"name": "cifar10", "category": "cat"}, {"name": "cifar10", "split": "validation"},
        {"name": "lsun", "category": "cat", "split": "test"}, {"name": "lsun", "split": "train"},
        {"name": "lsun", "category": "cat", "split": "train", "download": True}, {"name": "folder", "root": "/a"},
        {"name": "folder", "root": "a", "shape": [1, 8, 8], "download": True}, {"name": "parquet", "shape": [3, 8, 8]},
        {"name": "folder", "root": "s3://a", "shape": [3, 8, 8]}, {"name": "celeba", "root": "hf://datasets/a/b"},
    ],
    "diffusion": [{"trained_betas": []}, {"beta_end": 2}],
    "cluster": [{"gpus_per_worker": -1}],
    "model": [
        "/my/model", {"unet": {"layer_per_block": 3}}, {"unet": {"block_out_channels": [8, 8]}}, {"num_classes": 7},
        {"unet": {"up_block_types": ["Foo"]}}, {"unet": {}, "checkpoint": "a"}, {"lora": "a/b"},
    ],
    "evaluate": [
        {"reference": 5}, {"reference": {"name": "foo"}}, {"reference": {"name": "digits", "splt": "test"}},
        {"metrics": "fid"}, {"metrics": ["foo"]}, {"metrics": ["fid", "fid"]},
    ],
    "grid": [[5], 3, {"steps": 10}, {"steps": []}],
    "comet": [{"project": "p"}], "wandb": [{"project": "p"}], "trackers": [["wandb"]], "prompts": [["a cat"]],
}  # fmt: skip
"""Section -> values that it must not have."""


def refusal(values: dict, cls=Config) -> str:
    with pytest.raises(UserError) as caught:
        validate(cls, values, "my.yaml")
    message = str(caught.value)
    assert message.startswith("my.yaml: ")
    assert "\n" not in message
    return message.removeprefix("my.yaml: ")


@pytest.mark.parametrize(
    ("section", "value"), [(section, value) for section in WRONG for value in WRONG[section]], ids=str
)
def test_a_key_gives_one_sentence_however_many_branches_it_has(section, value):
    message = refusal(MINIMAL | {section: value})
    assert message.count("must be") <= 1 or "; " in message
    assert "instance of" not in message
    recorded(message)


def test_of_a_long_list_the_wrong_item_is_shown():
    recorded(refusal({"trained_betas": [0.1] * 999 + [2.0]}, Diffusion))


def test_a_mistake_of_the_whole_section_needs_no_key():
    recorded(refusal({"batch_size": 2, "workers": 3}, Train))


def test_a_number_with_an_exponent_is_text_in_yaml_and_a_truth_in_a_grid_is_no_number():
    assert validate(Train, {"learning_rate": "2e-4"}, "t").learning_rate == 2e-4
    oracle = {"name": "x", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}}
    for config in (MINIMAL | {"grid": {"steps": [True]}}, oracle | {"grid": {"cfg": [1.0]}}):
        with raises(UserError):
            plan(load(config))


@pytest.mark.parametrize("deep", [600, 5000])
def test_what_is_nested_deeply_is_one_line(deep):
    value = "x"
    for _ in range(deep):
        value = [value]
    with pytest.raises(UserError):
        load(MINIMAL | {"grid": value})


@pytest.mark.parametrize("text", ["a\x1b[31m", "\x9b2J", "a\u202eb", "\ud800", "\x00"], ids=repr)
@pytest.mark.parametrize(
    "more",
    [
        lambda text: {"data": {"name": "folder", "root": text, "shape": [1, 8, 8]}},
        lambda text: {"grid": {"steps": [2], "data.root": [text]}},
        lambda text: {"grid": {text: [2]}},
        lambda text: {"model": {"callable": text}},
    ],
)
def test_a_text_that_steers_a_terminal_is_refused(tmp_path, text, more):
    """Such a label ended a report, whose figures are XML, and passed through every table."""
    claim(tmp_path, LOCAL)
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL | more(text)))
    for given in (MINIMAL | more(text), str(tmp_path)):
        with pytest.raises(UserError, match="control") as caught:
            load(given)
        assert text not in str(caught.value)


# Assignments


@pytest.mark.parametrize(
    ("values", "assignment"),
    [
        (MINIMAL, "sample.steps"),
        (MINIMAL, "=3"),
        (MINIMAL, "sample.steps=[1"),
        (MINIMAL, "grid={steps: [1], steps: [2]}"),
        ({"grid": [{"steps": [5]}]}, "grid.steps=[1]"),
        ({"data": "fashion-mnist"}, "data.split=train"),
        ({"model": "org/checkpoint"}, "model.vae=org/vae"),
    ],
)
def test_a_malformed_set_is_refused(values, assignment):
    with raises(UserError):
        merge(values, [assignment])


def test_a_second_source_of_a_model_is_refused_until_the_first_is_null():
    with pytest.raises(UserError, match=r"model\.unet: null"):
        load(MINIMAL, ["model.checkpoint=some/folder"])
    assert load(MINIMAL, ["model.unet=null", "model.checkpoint=some/folder"]).model.checkpoint.endswith("some/folder")


@pytest.mark.parametrize(
    ("grid", "assignment", "overruled"),
    [
        ({"steps": [2, 4]}, "sample.steps=10", True),
        ([{"steps": [2]}, {"steps": [4], "eta": [1.0]}], "sample.steps=10", True),
        ([{"steps": [2]}, {"steps": [4], "eta": [1.0]}], "sample.eta=1.0", False),
        ({"diffusion.schedule": ["linear"]}, "diffusion.schedule=cosine", True),
        ({"steps": [2]}, "train.steps=10", False),
        ([], "sample.steps=10", False),
    ],
)
def test_a_set_that_the_grid_would_overrule_is_refused(grid, assignment, overruled):
    with raises(UserError) if overruled else nullcontext():
        load(MINIMAL | {"grid": grid}, [assignment])
    load(MINIMAL | {"grid": grid}, [assignment, "grid=[]"])


def test_a_mistake_in_an_assignment_is_not_the_files(tmp_path):
    for name, more, assignment in (("good", {}, "smaple=1"), ("bad", {"smaple": {"steps": 5}}, "seed=1")):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(MINIMAL | more))
        with raises(UserError):
            load(str(tmp_path / f"{name}.yaml"), [assignment])


# Files


@pytest.mark.parametrize("name", ["digitz", "nowhere/at/all.yaml"])
def test_a_missing_config_is_said_with_a_hint(name):
    with raises(UserError):
        find(name)


ANCHORED = "x-few: &few {num_samples: 60}\nname: anchored\nmodel: {oracle: gaussian}\nsample: {<<: *few, steps: 5}\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.yaml", b"a: [1"),
        ("c.yaml", b"- 1\n- 2"),
        ("c.yaml", b"\x00"),
        ("c.yaml", b"\x89PNG\r\n"),
        ("c.yaml", b"a: 1\nb: [1\n"),
        ("c.yaml", b"a: 1\n b: 2\nc: 3"),
        ("c.yaml", b"name: x\nsample: {steps: 5}\nsample:\n  eta: 1.0\n"),  # YAML would use the last one
        ("c.yaml", b"name: x\nsample: {steps: 5, eta: 0, steps: 6}\n"),
        ("c.json", b'{"name": "x", "sample": {"steps": 5, "eta": 0, "steps": 6}}'),
        ("c.yaml", ANCHORED.replace("sample: {", "sample: {x-inner: 1, ").encode()),
        ("c.json", b'{"name": "a", "x-few": 1}'),  # JSON has no anchors
    ],
)
def test_a_file_that_is_no_config_is_one_line_without_pythons_words(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with raises(UserError) as caught:
        load(str(tmp_path / name))
    assert [word for word in ("\n", "codec") if word in str(caught.value)] == []


def test_behind_a_merge_key_too_the_line_of_what_appears_twice_is_named(tmp_path):
    lines = ("x-few: &few {seed: 1}", "name: x", "sample:", "  <<: *few", "  eta: 0", "  steps: 5", "  steps: 6")
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="line 6, column 3: the key 'steps' appears twice"):
        load(str(tmp_path / "c.yaml"))


# Run directories


def test_a_damaged_config_of_a_run_directory_is_one_line(tmp_path):
    claim(tmp_path, LOCAL)
    for content in ('{"name": ', "null", "[]", '{"name": "x", "sample": {"batch_s<ze": 1}}'):
        (tmp_path / "config.json").write_text(content)
        with raises(UserError):
            load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL))
    with raises(UserError):
        load(str(tmp_path), ["sample.stops=1"])
    (tmp_path / "config.json").unlink()
    with raises(UserError):
        load(str(tmp_path))
