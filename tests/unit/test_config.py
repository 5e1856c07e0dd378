import json
from typing import get_args

import pytest
import yaml

from taugrid.config import Config, Diffusion, Evaluate, validate
from taugrid.config import schema as config_schema
from taugrid.config.load import find, load, merge
from taugrid.config.sample import Spacing
from taugrid.grids import points
from taugrid.run_id import claim
from taugrid.storage import LOCAL
from taugrid.workers.diffusion import schedule, timesteps
from taugrid.workers.diffusion.process import PredictionType
from taugrid.yaml_text import to_yaml

MINIMAL = {"name": "x", "model": {"unet": {}}}


@pytest.fixture
def loaded(tmp_path):
    """Loads a config from the text of its file."""

    def of(text, *assignments):
        (tmp_path / "c.yaml").write_text(text)
        return load(str(tmp_path / "c.yaml"), assignments)

    return of


def test_set_takes_yaml_values_and_reaches_into_sections():
    merged = merge(MINIMAL, ["grid.steps=[10, 20]", "sample.num_samples=5", "grid.diffusion.schedule=[linear, cosine]"])
    assert merged["grid"] == {"steps": [10, 20], "diffusion.schedule": ["linear", "cosine"]}
    assert merged["sample"] == {"num_samples": 5}
    assert "sample" not in MINIMAL, "merging must not change what it was given"
    empty = {"sample": None, "grid": []}
    assert merge(empty, ["sample.steps=5", "grid.eta=[0.0]"]) == {"sample": {"steps": 5}, "grid": {"eta": [0.0]}}


ANCHORED = """
x-few: &few {num_samples: 60}
x-of-the-team: whatever
name: anchored
model: {oracle: gaussian}
data: {name: gaussian}
sample: {<<: *few, steps: 5}
"""


def test_top_level_keys_that_begin_with_x_hold_anchors_and_are_ignored(loaded):
    config, values = loaded(ANCHORED), yaml.safe_load(ANCHORED)
    assert (config.sample.num_samples, config.sample.steps) == (60, 5)
    assert config.model_dump() == load({k: v for k, v in values.items() if k[:2] != "x-"}).model_dump()
    assert "^x-" in config_schema()["patternProperties"]


def test_yaml_s_merge_key_may_repeat_what_it_overrides(loaded):
    config = loaded("name: x\ngrid:\n  - &a {steps: [5], eta: [0.0]}\n  - {<<: *a, eta: [1.0]}\n")
    assert config.grid == [{"steps": [5], "eta": [0.0]}, {"steps": [5], "eta": [1.0]}]


EXPONENTS = """
name: x
diffusion: {process: edm, sigma_max: 8.0e1}
train: {learning_rate: 2e-4}
sample: {steps: 1E+1}
grid: {eta: [5e-1, .25e0, 1.e0], exclude: {eta: 0.5}}
"""


def test_a_number_may_have_an_exponent_without_a_sign_or_a_point(loaded):
    """YAML 1.1, which PyYAML reads, wants both."""
    config = loaded(EXPONENTS, "sample.guidance=1.5e0")
    values = (config.diffusion.sigma_max, config.train.learning_rate, config.sample.steps, config.sample.guidance)
    assert values == (80.0, 2e-4, 10, 1.5)
    assert config.grid[0]["eta"] == [0.5, 0.25, 1.0]
    assert [point["eta"] for point in points(config.grid[0])] == [0.25, 1.0]
    from_python = load(yaml.safe_load(EXPONENTS) | {"sample": {}, "grid": {}})
    assert (from_python.diffusion, from_python.train) == (config.diffusion, config.train)


@pytest.mark.parametrize("name", ["2024-01-31", "7e123456"])
def test_a_date_is_text_and_so_is_what_no_float_can_hold(loaded, name):
    assert loaded(f"name: {name}").name == name


def test_a_text_that_looks_like_a_number_stays_one_in_what_taugrid_writes(loaded):
    config = loaded("name: '8.0e1'\ncluster: {label_selector: {zone: '2e4'}}")
    assert loaded(to_yaml(config.recorded)) == config


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


def test_the_schema_has_every_section_and_a_description_of_every_key():
    schema = config_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert {branch["type"] for branch in schema["properties"]["grid"]["anyOf"]} == {"object", "array"}
    described = dict(keys_of(schema, schema))
    assert described.keys() >= {"sample.eta", "train.loss_weights.sigma_1", "evaluate.reference.split", "cluster.train"}
    assert [key for key, description in described.items() if not description] == []


def test_names_are_those_of_the_mathematics():
    assert get_args(Spacing) == (*timesteps.SPACINGS, *timesteps.FRACTIONAL)
    assert get_args(get_args(Diffusion.model_fields["schedule"].annotation)[0]) == schedule.SCHEDULES
    assert get_args(get_args(Diffusion.model_fields["prediction"].annotation)[0]) == get_args(PredictionType)


def test_a_config_is_found_by_path_by_name_and_by_run_directory(tmp_path):
    assert find("digits") == find("digits.yaml")
    claim(tmp_path, LOCAL)
    (tmp_path / "config.json").write_text("{}")
    assert find(str(tmp_path)) == tmp_path / "config.json"


def test_a_resolved_config_loads_as_itself_and_takes_a_new_seed(loaded, tmp_path):
    """`taugrid run DIR` must mean the same experiment. Seeds are filled in, and must not swallow `--set seed=5`."""
    given = loaded(yaml.safe_dump(MINIMAL | {"seed": 7, "train": {"seed": 3}}))
    assert (given.train.seed, given.sample.seed) == (3, 7)
    config = load("digits")
    claim(tmp_path, LOCAL)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    assert load(str(tmp_path)) == load(str(tmp_path / "config.json")) == config
    config = load(str(tmp_path), ["seed=5"])
    assert (config.train.seed, config.sample.seed) == (5, 5)


def test_seeds_that_are_given_stay_whatever_the_top_level_one_is(tmp_path):
    assert load(MINIMAL | {"seed": 7, "train": {"seed": 0}}).train.seed == 0
    (tmp_path / "config.json").write_text(load("digits").model_dump_json())
    config = load(str(tmp_path / "config.json"), ["seed=5", "sample.seed=3"])
    assert (config.train.seed, config.sample.seed) == (5, 3)


RELATIVE = """
name: x
data: {name: fashion-mnist, root: runs/x/images}
model: {checkpoint: runs/x/network, guide: runs/x/guide, vae: runs/x/vae}
sample: {labels: {parquet: runs/x/labels.parquet, column: c}}
evaluate: {weights: runs/x/extractor, reference: runs/x}
cluster: {scratch: runs/x/scratch}
grid:
- data.root: [runs/x/images]
  model.checkpoint: [runs/x/network, "runs/x/*", {newest: 3, of: runs/x/step-*}]
  model.guide: [runs/x/guide]
  zip: {model.vae: [runs/x/vae], labels: [{parquet: runs/x/labels.parquet, column: c}]}
- model.checkpoint: [null]
  model.callable: ["m:f"]
  model.weights: [runs/x/weights]
"""
"""A config with each key that is a path, in its section and in the grid."""


def test_a_path_means_the_same_from_everywhere(loaded, tmp_path, monkeypatch):
    """A run directory's config.json may be opened from another folder, and `submit` sends it to another machine."""
    (tmp_path / "runs/x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    config = loaded(RELATIVE)
    absolute = RELATIVE.replace("runs/x", f"{tmp_path}/runs/x")
    assert config.recorded == loaded(absolute).recorded
    assert json.dumps(config.recorded).count(f"{tmp_path}/runs/x") == absolute.count(str(tmp_path))


def test_a_path_below_an_unknown_home_stays_one():
    assert load(MINIMAL | {"cluster": {"scratch": "~nobody-here/x"}}).cluster.scratch.endswith("/~nobody-here/x")


def test_metrics_get_all_of_their_settings():
    keys = ("seed", "isc_splits", "kid_subsets", "kid_subset_size", "prc_neighborhood", "mind_projections")
    given = {key: number for number, key in enumerate(keys, 5)}
    assert validate(Evaluate, given, "test").metric_settings.__dict__.items() >= given.items()


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


def test_the_references_root_is_that_of_the_same_data_set(tmp_path):
    values = MINIMAL | {"data": {"name": "fashion-mnist", "root": str(tmp_path)}}

    def root(**reference):
        return load(values | {"evaluate": {"reference": reference}}).evaluate.reference.root

    assert root(name="fashion-mnist", split="test") == str(tmp_path)
    assert root(name="fashion-mnist", root="/other") == "/other"
    assert root(name="cifar10") is None
    assert root(name="digits") is None
