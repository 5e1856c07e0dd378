import errno
import json
import re
from pathlib import Path
from typing import get_args

import pytest
import yaml
from snapshots import raises, recorded

from taugrid import __version__
from taugrid.config import Config, Diffusion, Evaluate, validate
from taugrid.config import schema as config_schema
from taugrid.config.load import find, load, merge
from taugrid.config.sample import Spacing
from taugrid.errors import UserError
from taugrid.run_id import claim
from taugrid.storage import LOCAL
from taugrid.workers.diffusion import schedule, timesteps
from taugrid.workers.diffusion.process import PredictionType

MINIMAL = {"name": "x", "model": {"unet": {}}}


@pytest.mark.parametrize(
    "values",
    [
        {"sampel": {}},
        {"sample": {"step": 3}},
        {"model": {"unet": {"layer_per_block": 3}}},
        {"train": {"batch_size": 2, "workers": 3}},
        {"grid": {"steps": 10}},
        {"grid": {"steps": []}},
        {"model": {"unet": {}, "checkpoint": "a"}},
        {"model": {"unet": {"block_out_channels": [8, 8]}}},
        {"data": {"name": "folder", "root": "a", "shape": [1, 8, 8], "download": True}},
        {"data": {"name": "cifar10", "root": "hf://datasets/a/b"}},
        {"data": {"name": "folder", "root": "s3://a", "shape": [3, 8, 8]}},
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(values):
    with raises(UserError) as caught:
        validate(Config, MINIMAL | values, "my.yaml")
    assert "\n" not in str(caught.value)


def test_a_key_that_is_gone_is_ignored_in_a_run_directory_and_names_its_successor_elsewhere(tmp_path):
    claim(tmp_path, LOCAL)
    content = '{"name": "x", "model": {"oracle": "gaussian"}, "data": {"name": "gaussian"}, "cluster": {%s}}'
    for name in ("config.json", "my.json"):
        (tmp_path / name).write_text(content % '"cuda_graphs": "off", "workers": 2')
    loaded = load(str(tmp_path))
    assert loaded.cluster.workers == 2
    (tmp_path / "without.json").write_text(content % '"workers": 2')
    assert loaded == load(str(tmp_path / "without.json"))
    successor = "'cluster.cuda_graphs': taugrid no longer makes CUDA graphs; .* sample.compile"
    with pytest.raises(UserError, match=successor):
        load(str(tmp_path / "my.json"))
    with pytest.raises(UserError, match=successor):
        load(str(tmp_path), ["cluster.cuda_graphs=off"])


def test_set_takes_yaml_values_and_reaches_into_sections():
    merged = merge(MINIMAL, ["grid.steps=[10, 20]", "sample.num_samples=5", "grid.diffusion.schedule=[linear, cosine]"])
    assert merged["grid"] == {"steps": [10, 20], "diffusion.schedule": ["linear", "cosine"]}
    assert merged["sample"] == {"num_samples": 5}
    assert "sample" not in MINIMAL, "merging must not change what it was given"


ANCHORED = """
x-few: &few {num_samples: 60}
x-of-the-team: whatever
name: anchored
model: {oracle: gaussian}
data: {name: gaussian}
sample: {<<: *few, steps: 5}
"""


def test_top_level_keys_that_begin_with_x_hold_anchors_and_are_ignored(tmp_path):
    path = tmp_path / "anchored.yaml"
    path.write_text(ANCHORED)
    config = load(str(path))
    assert (config.sample.num_samples, config.sample.steps) == (60, 5)
    assert (
        config.model_dump() == load({k: v for k, v in yaml.safe_load(ANCHORED).items() if k[:2] != "x-"}).model_dump()
    )
    assert "^x-" in config_schema()["patternProperties"]


@pytest.mark.parametrize("text", [ANCHORED.replace("sample: {", "sample: {x-inner: 1, "), '{"name": "a", "x-few": 1}'])
def test_they_are_ignored_nowhere_else(text, tmp_path):
    """Neither within a section nor in JSON, which has no anchors."""
    path = tmp_path / ("config.json" if text.startswith("{") else "anchored.yaml")
    path.write_text(text)
    with raises(UserError):
        load(str(path))


@pytest.mark.parametrize("assignment", ["sample.steps", "=3", "sample.steps=[1"])
def test_a_malformed_set_is_refused(assignment):
    with pytest.raises(UserError, match="--set"):
        merge(MINIMAL, [assignment])


@pytest.mark.parametrize(
    ("model", "assignment", "way_out"),
    [
        ({"unet": {}}, "model.checkpoint=some/folder", "model={checkpoint: some/folder}"),
        ({"checkpoint": "a"}, "model.callable=mine:load", "model={callable: mine:load}"),
    ],
)
def test_a_second_source_of_a_model_is_refused_with_a_set_that_replaces_the_first(model, assignment, way_out):
    values = {"name": "x", "model": model}
    with pytest.raises(UserError) as caught:
        load(values, [assignment])
    assert f"--set '{way_out}'" in str(caught.value)
    name, wanted = assignment.removeprefix("model.").split("=")
    assert getattr(load(values, [way_out]).model, name).endswith(wanted), "the way out is one"
    assert getattr(load(values, [f"model.{next(iter(model))}=null", assignment]).model, name).endswith(wanted)


def test_a_set_of_one_key_of_a_list_of_grids_is_refused_with_a_set_of_the_list():
    values = MINIMAL | {"grid": [{"steps": [10, 20], "eta": [0]}, {"steps": [10], "eta": ["sigma_hat"]}]}
    with pytest.raises(UserError) as caught:
        load(values, ["grid.steps=[5]"])
    way_out = re.search("--set '(.*)'$", str(caught.value))[1]
    recorded(way_out)
    assert load(values, [way_out]).grid == [{"steps": [5], "eta": [0]}, {"steps": [5], "eta": ["sigma_hat"]}]


def parts(schema, key):
    """The branches of a part of a JSON schema, with what they refer to."""
    return [
        schema["$defs"][branch["$ref"].rpartition("/")[2]] if "$ref" in branch else branch
        for branch in key.get("anyOf", [key])
    ]


def keys_of(schema, section, path=""):
    """Every key below a part of a JSON schema, dotted, with its description or that of the section that it is."""
    for part in parts(schema, section):
        for name, key in part.get("properties", {}).items():
            sections = [other.get("description") for other in parts(schema, key) if "properties" in other]
            yield f"{path}{name}", key.get("description") or next(iter(sections), None)
            yield from keys_of(schema, key, f"{path}{name}.")


def test_every_key_has_a_description():
    schema = config_schema()
    described = dict(keys_of(schema, schema))
    assert described.keys() >= {"sample.eta", "train.loss_weights.sigma_1", "evaluate.reference.split", "cluster.train"}
    assert [key for key, description in described.items() if not description] == []


def test_seeds_default_to_the_top_level_seed(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "seed": 7, "train": {"seed": 3}}))
    config = load(str(path))
    assert (config.train.seed, config.sample.seed) == (3, 7)


def test_a_config_is_found_by_path_by_name_and_by_run_directory(tmp_path):
    assert find("digits") == find("digits.yaml")
    claim(tmp_path, LOCAL)
    (tmp_path / "config.json").write_text("{}")
    assert find(str(tmp_path)) == tmp_path / "config.json"


@pytest.mark.parametrize("name", ["digitz", "nowhere/at/all.yaml"])
def test_a_missing_config_is_said_with_a_hint(name):
    with raises(UserError):
        find(name)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "\x00"])
def test_a_file_that_is_no_mapping_is_one_line(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(str(path))
    assert "\n" not in str(caught.value)


def test_names_are_those_of_the_mathematics():
    assert get_args(Spacing) == (*timesteps.SPACINGS, *timesteps.FRACTIONAL)
    assert get_args(get_args(Diffusion.model_fields["schedule"].annotation)[0]) == schedule.SCHEDULES
    assert get_args(get_args(Diffusion.model_fields["prediction"].annotation)[0]) == get_args(PredictionType)


def test_the_schema_describes_every_section():
    properties = config_schema()["properties"]
    assert set(properties) == set(Config.model_fields)
    assert {branch["type"] for branch in properties["grid"]["anyOf"]} == {"object", "array"}


def test_a_new_seed_reaches_the_sections_of_a_run_directory(tmp_path):
    """config.json has the seeds filled in; `--set seed=5` must not be swallowed by them."""
    path = tmp_path / "config.json"
    path.write_text(load("digits").model_dump_json())
    config = load(str(tmp_path), ["seed=5"])
    assert (config.train.seed, config.sample.seed) == (5, 5)


def test_a_checkpoint_means_the_same_folder_from_everywhere(tmp_path, monkeypatch):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\nmodel: {checkpoint: c}\ngrid: {model.checkpoint: [a, b, on/hub@v1, here/too]}")
    (tmp_path / "here" / "too").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = load("c.yaml")
    assert config.model.checkpoint == str(tmp_path / "c")
    assert config.grid[0]["model.checkpoint"] == [
        *(str(tmp_path / name) for name in ("a", "b")), "on/hub@v1", str(tmp_path / "here" / "too")
    ]  # fmt: skip


def test_a_resolved_config_loads_as_itself(tmp_path):
    """config.json of a run directory is a config: `taugrid run DIR` must mean the same experiment."""
    config = load("digits")
    path = tmp_path / "config.json"
    path.write_text(config.model_dump_json())
    assert load(str(path)) == config


def test_a_key_that_a_file_has_twice_is_refused(tmp_path):
    """YAML would use the last one without a word."""
    path = tmp_path / "c.yaml"
    path.write_text("name: x\nsample: {steps: 5}\nsample:\n  eta: 1.0\n")
    with raises(UserError) as error:
        load(str(path))
    assert "\n" not in str(error.value)
    path.write_text("name: x\nsample: {steps: 5, eta: 0, steps: 6}\n")
    with raises(UserError):
        load(str(path))
    with raises(UserError):
        merge({}, ["grid={steps: [1], steps: [2]}"])
    path.write_text("name: x\nsample: &s {steps: 5}\ntrain: {}\ncluster: {}\ndata: &d {name: digits}\n")
    assert load(str(path)).sample.steps == 5


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n",
        b"a: 1\nb: [1\n",
        b"a: 1\n b: 2\nc: 3",
    ],
)
def test_a_file_that_is_no_config_is_said_without_pythons_words(tmp_path, content):
    (tmp_path / "c.yaml").write_bytes(content)
    with raises(UserError) as error:
        load(str(tmp_path / "c.yaml"))
    assert [word for word in ("codec", "unicode") if word in str(error.value)] == []


def test_the_references_root_is_that_of_the_same_data_set(tmp_path):
    values = MINIMAL | {"data": {"name": "fashion-mnist", "root": str(tmp_path)}}

    def root(**reference):
        return load(values | {"evaluate": {"reference": reference}}).evaluate.reference.root

    assert root(name="fashion-mnist", split="test") == str(tmp_path)
    assert root(name="fashion-mnist", root="/other") == "/other"
    assert root(name="cifar10") is None
    assert root(name="digits") is None


def test_a_key_that_a_json_file_has_twice_is_refused(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"name": "x", "sample": {"steps": 5, "eta": 0, "steps": 6}}')
    with raises(UserError):
        load(str(path))


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
    for given in (MINIMAL | more(text), str(tmp_path)):
        (tmp_path / "config.json").write_text(json.dumps(MINIMAL | more(text)))
        with pytest.raises(UserError, match="control character") as caught:
            load(given)
        assert text not in str(caught.value)


def test_a_damaged_config_of_a_run_directory_may_be_replaced_by_ones_own(tmp_path):
    claim(tmp_path, LOCAL)
    way_out = rf"; move it away and write it again from your own config: `taugrid report CONFIG --out {tmp_path}`$"
    for content in ('{"name": ', "null", "[]", '{"name": "x", "sample": {"batch_s<ze": 1}}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(UserError, match=rf"config.json.*{way_out}"):
            load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL))
    with raises(UserError):
        load(str(tmp_path), ["sample.stops=1"])
    (tmp_path / "config.json").unlink()
    with raises(UserError):
        load(str(tmp_path))


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
def test_a_set_that_the_grid_would_overrule_is_refused(tmp_path, grid, assignment, overruled):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(MINIMAL | {"grid": grid}))
    if overruled:
        with raises(UserError):
            load(str(path), [assignment])
    else:
        load(str(path), [assignment])
    load(str(path), [assignment, "grid=[]"])


def test_yaml_s_merge_key_may_repeat_what_it_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("name: x\ngrid:\n  - &a {steps: [5], eta: [0.0]}\n  - {<<: *a, eta: [1.0]}\n")
    assert load(str(path)).grid == [{"steps": [5], "eta": [0.0]}, {"steps": [5], "eta": [1.0]}]


def test_a_run_of_another_version_is_said_where_its_config_has_unknown_keys(tmp_path):
    claim(tmp_path, LOCAL)
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL | {"key_of_9": 1}))
    with raises(UserError):
        load(str(tmp_path))
    for version in ("9.9.9", __version__):
        (tmp_path / "provenance.json").write_text(json.dumps({"versions": {"taugrid": version}}))
        with raises(UserError):
            load(str(tmp_path))


def test_a_config_that_may_not_be_read_is_not_to_be_removed(tmp_path, monkeypatch):
    claim(tmp_path, LOCAL)
    (tmp_path / "config.json").write_text(json.dumps(MINIMAL))

    def opened(path, *how, usual=Path.open, **text):  # tests run as root, whom nobody refuses
        if path == tmp_path / "config.json":
            raise PermissionError(errno.EACCES, "Permission denied")
        return usual(path, *how, **text)

    monkeypatch.setattr(Path, "open", opened)
    with raises(UserError):
        load(str(tmp_path))


@pytest.mark.parametrize("config", [{"_class_name": "UNet2DModel"}, {"name": "x", "sample": "mine"}, []])
def test_the_config_of_something_else_is_not_to_be_replaced(tmp_path, config):
    """Who moves a network's config.json away, as a run's damaged one, has no network any more."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    for given in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError) as caught:
            load(str(given))
        assert "move" not in str(caught.value)


@pytest.mark.parametrize("deep", [600, 5000])
def test_what_is_nested_deeply_is_one_line(deep):
    value = "x"
    for _ in range(deep):
        value = [value]
    with pytest.raises(UserError):
        load(MINIMAL | {"grid": value})


def test_seeds_that_are_given_stay_whatever_the_top_level_one_is(tmp_path):
    assert load(MINIMAL | {"seed": 7, "train": {"seed": 0}}).train.seed == 0
    (tmp_path / "config.json").write_text(load("digits").model_dump_json())
    config = load(str(tmp_path / "config.json"), ["seed=5", "sample.seed=3"])
    assert (config.train.seed, config.sample.seed) == (5, 3)


def test_the_root_of_data_means_the_same_folder_from_everywhere():
    assert load(MINIMAL | {"data": {"name": "fashion-mnist", "root": "x"}}).data.root == str(Path("x").absolute())


def test_metrics_get_all_of_their_settings():
    keys = ("seed", "isc_splits", "kid_subsets", "kid_subset_size", "prc_neighborhood", "mind_projections")
    given = {key: number for number, key in enumerate(keys, 5)}
    assert validate(Evaluate, given, "test").metric_settings.__dict__.items() >= given.items()
