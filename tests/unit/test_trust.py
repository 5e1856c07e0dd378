"""A directory that somebody sent runs no code unless it is trusted; what the user's own config names is."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from snapshots import recorded

from taugrid.config import Config, validate
from taugrid.config.load import load
from taugrid.errors import UserError
from taugrid.images import encode_png
from taugrid.orchestrator.cli.main import cli
from taugrid.orchestrator.opened import open_config
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.trust import custom_code, require_trusted, trust, trust_file
from taugrid.registry.extractors import ExtractorSpec
from taugrid.run_id import claim
from taugrid.storage import LOCAL

MODULE = """
from pathlib import Path
Path({mark!r}).touch()
def load(weights=None):
    return lambda x, t: 0.5 * x
"""


@pytest.fixture
def mark(tmp_path, monkeypatch):
    """The file that a user's code leaves when it runs: `mine.py` in the current folder, or `code.py` as weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    mark = tmp_path / "mark"
    for name in ("mine.py", "code.py"):
        (tmp_path / name).write_text(MODULE.format(mark=str(mark)))
    return mark


def config_of(model, extractor=None, sampler="ddim"):
    values = {
        "name": "sent", "model": model, "evaluate": {"extractor": extractor},
        "sample": {"num_samples": 4, "steps": 2, "seed": 0, "sampler": sampler},
    }  # fmt: skip
    return validate(Config, values, "test")


def record_of(extractor):
    """What plan.json says on how cells of 8 x 8 are scored."""
    return {"image_shape": [1, 8, 8], "extractor": extractor}


def sent(folder, config, with_record=True):
    """A run directory as somebody sent it, perhaps with records of what its code gives."""
    folder.mkdir()
    claim(folder, LOCAL)
    (folder / "config.json").write_text(config.model_dump_json())
    if with_record:
        network = {
            "callable": config.model.callable, "weights": config.model.weights, "weights_sha256": "a" * 64,
            "source_sha256": "b" * 64, "tensors_sha256": "c" * 64, "image_shape": [1, 8, 8], "summary": "a function",
            "files": [], "conditions": None,
        }  # fmt: skip
        (folder / "models" / "m").mkdir(parents=True)
        (folder / "models" / "m" / "model.json").write_text(json.dumps(network))
        known = (str(config.evaluate.extractor), None, "a" * 64, "x", None, 3, None, "b" * 64)
        spec = ExtractorSpec(*known)
        (folder / "plan.json").write_text(json.dumps({"evaluation": record_of(asdict(spec))}))
    return folder


def ends(*arguments):
    """The line with which a command is refused, or None if it was done."""
    said = None
    try:
        cli.main([str(argument) for argument in arguments], prog_name="taugrid", standalone_mode=False)
    except UserError as error:
        said = str(error)
    except SystemExit:
        pass
    assert "\n" not in (said or "")
    return said


def looking(root):
    """Commands that look at a directory, by itself or by its config."""
    given = [("export", root, "S", "--to", root.parent / "png"), ("compare", root, "S", "S")]
    for command in (("status",), ("plan",), ("verify",), ("report",), ("config", "show"), ("config", "validate")):
        given.append((*command, root))
    return [*given, ("plan", root / "config.json"), ("report", root / "config.json", "--out", root)]


WORKING = ("run", "train", "sample", "evaluate", "reconstruct", "interpolate")

EXECUTES_WEIGHTS = {"callable": "runpy:run_path", "weights": "code.py"}


@pytest.mark.parametrize("with_record", [True, False])
def test_looking_at_a_directory_runs_none_of_the_code_that_its_config_names(
    mark, asked_here, tmp_path, with_record, capsys
):
    model = EXECUTES_WEIGHTS | {"weights": str(tmp_path / "code.py")}
    root = sent(tmp_path / "sent", config_of(model, "mine:Extractor"), with_record)
    for command in looking(root):
        said = ends(*command)
        assert with_record or command[0] == "config" or said is not None
        assert not mark.exists(), command
    said = ends("status", root)
    assert (said is None) == with_record
    assert "runpy:run_path" in (said or capsys.readouterr().out)


@pytest.mark.parametrize(
    ("key", "name", "config"),
    [
        ("model.callable", "runpy:run_path", {"model": EXECUTES_WEIGHTS}),
        ("model.callable", "mine:load", {"model": {"callable": "mine:load"}}),
        ("evaluate.extractor", "mine:Extractor", {"model": {"oracle": "gaussian"}, "extractor": "mine:Extractor"}),
        ("sample.sampler", "mine:sample", {"model": {"unet": {}}, "sampler": "mine:sample"}),
    ],
)
def test_work_in_a_directory_that_names_code_needs_trust(mark, asked_here, tmp_path, key, name, config):
    root = sent(tmp_path / "sent", config_of(**config))
    for command in WORKING if key != "evaluate.extractor" else ("run", "evaluate"):
        said = ends(command, root)
        assert all(fact in str(said) for fact in (key, name, "--trust-code", str(root)))
    if key == "sample.sampler":
        for command in looking(root):
            assert command[0] == "config" or ends(*command) is not None
        recorded(str(ends("status", root)), "commands")
    assert not mark.exists()
    with suppress(UserError):
        open_config(str(root), (), None, runs_code=True, trust_code=True)
    assert mark.exists() or key == "evaluate.extractor", "the flag is for running it"


def test_a_module_that_is_gone_is_no_matter_of_trust(mark, asked_here, tmp_path):
    root = sent(tmp_path / "sent", config_of({"oracle": "gaussian"}, sampler="gone:sample"))
    said = str(ends("run", root))
    recorded(said, "current")
    assert "--trust-code" not in said


@pytest.mark.long
def test_code_that_the_users_own_config_named_may_run_wherever_it_is_named(mark, tmp_path):
    """The first `plan` of a file describes the network and trusts it; a directory then needs no flag.

    Other processes are asked here, as they are by users; the other tests answer in this one.
    """
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"name": "own", "model": {"callable": "mine:load"}, "sample": {"num_samples": 4}}))
    assert ends("plan", own) is None
    assert mark.exists()
    root = sent(tmp_path / "sent", config_of({"callable": "mine:load"}))
    assert len(open_config(str(root), (), None, runs_code=True).plan.cells) == 1


def trusted(config):
    try:
        require_trusted(custom_code(config), trust_file())
    except UserError:
        return False
    return True


def test_trust_is_in_the_function_its_source_and_its_weights(mark, asked_here, tmp_path):
    torch.save({}, tmp_path / "one.pt")
    config = config_of({"callable": "mine:load", "weights": str(tmp_path / "one.pt")})
    assert not trusted(config)
    trust(custom_code(config))
    assert trusted(config)
    assert json.loads(trust_file().read_text()).popitem()[1] == "mine:load"
    code = (tmp_path / "mine.py").read_text()
    for comment, stays in (("# a comment\n", True), ("import os\n", False)):
        (tmp_path / "mine.py").write_text(comment + code)
        assert trusted(config) == stays
    (tmp_path / "mine.py").write_text(code)
    for model in (
        {"weights": str(tmp_path / "code.py")},
        {},
        {"callable": "mine:other", "weights": config.model.weights},
    ):
        assert not trusted(config_of({"callable": "mine:load"} | model))
    assert not mark.exists(), "asking for its hash does not import it"


def test_every_network_of_a_grid_is_asked_about():
    grid = [
        {"model.callable": ["a:b", "c:d"]},
        {"model.weights": ["x.pt", "y.pt"], "model.callable": ["e:f"]},
        {"sampler": ["ddim", "i:j", "diffusers:PNDMScheduler"]},
    ]
    config = validate(Config, {"name": "x", "grid": grid, "evaluate": {"extractor": "g:H", "weights": "z"}}, "test")
    found = {(code.name, code.weights) for code in custom_code(config)}
    assert found == {("a:b", None), ("c:d", None), ("e:f", "x.pt"), ("e:f", "y.pt"), ("i:j", None), ("g:H", "z")}


def test_a_grid_with_a_value_that_is_no_text_is_left_to_the_plan_to_refuse():
    grid = [
        {"sampler": [None, "heun", 5, ["i:j"], "k:l"]},
        {"model.callable": [None, 5, ["c:d"], "a:b"], "model.weights": [5, "x.pt"]},
    ]
    config = load({"name": "x", "data": {"name": "gaussian"}, "grid": grid})
    found = {(code.name, code.weights) for code in custom_code(config)}
    assert found == {("k:l", None), ("a:b", str(Path("x.pt").absolute()))}
    with pytest.raises(UserError):
        plan(config)


def test_what_the_user_sets_on_the_command_line_is_the_users_own(mark, asked_here, tmp_path):
    root = sent(tmp_path / "sent", config_of({"oracle": "gaussian"}))
    opened = open_config(str(root), ["model={callable: mine:load}"], None, runs_code=True)
    assert opened.plan.models[0].source.name == "mine:load"


def test_a_trust_file_that_can_not_be_written_is_no_obstacle(mark, asked_here, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    config = config_of({"callable": "mine:load"})
    trust(custom_code(config))
    assert not trusted(config)


def test_a_directory_with_a_code_object_in_place_of_a_name_is_refused(mark, tmp_path):
    root = sent(tmp_path / "sent", config_of({"callable": "mine:load"}))
    values = json.loads((root / "config.json").read_text())
    values["model"]["callable"] = "__import__('os').system('touch mark')"
    (root / "config.json").write_text(json.dumps(values))
    assert "module:function" in str(ends("status", root))
    assert not mark.exists()


@pytest.mark.parametrize("change", [{"summary": None}, {"unknown": 1}, {"files": [[]]}, {"conditions": 3}])
def test_a_record_that_can_not_be_read_is_one_line(mark, tmp_path, change):
    root = sent(tmp_path / "sent", config_of({"callable": "mine:load"}))
    record = root / "models" / "m" / "model.json"
    values = json.loads(record.read_text()) | change
    record.write_text(
        json.dumps({key: value for key, value in values.items() if value is not None or key != "summary"})
    )
    assert "mine:load" in str(ends("status", root))


@pytest.mark.parametrize("content", [[], {"evaluation": 3}, {"evaluation": record_of({})},
                                     {"evaluation": record_of({"files": 3})}])  # fmt: skip
def test_a_record_of_an_extractor_that_can_not_be_read_is_one_line(mark, tmp_path, content):
    root = sent(tmp_path / "sent", config_of({"callable": "mine:load"}, "mine:Extractor"))
    (root / "plan.json").write_text(json.dumps(content))
    recorded(str(ends("report", root)), "Extractor")
    assert not mark.exists()


def test_the_file_in_a_directory_is_refused_in_favour_of_the_directory(mark, tmp_path):
    root = sent(tmp_path / "sent", config_of({"callable": "mine:load"}))
    recorded(str(ends("plan", root / "config.json")))
    assert ends("plan", root / "config.json", "--out", root) is None
    assert not mark.exists()


def test_images_are_scored_with_a_runs_code_if_it_is_trusted(mark, asked_here, tmp_path):
    root = sent(tmp_path / "sent", config_of({"oracle": "gaussian"}, "mine:Extractor"))
    images = tmp_path / "images"
    images.mkdir()
    (images / "0.png").write_bytes(encode_png(np.zeros((1, 8, 8), np.uint8)))
    for command in (("compare", images, images), ("evaluate", "--samples", images)):
        said = str(ends(*command, "--reference", root))
        assert all(fact in said for fact in ("mine:Extractor", "add --trust-code, or give extractor"))
        assert not mark.exists()
    assert "mine" in str(ends("compare", images, images, "--reference", root, "--trust-code"))
    assert mark.exists(), "the flag is for running it"
