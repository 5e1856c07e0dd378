"""Whether both networks of a comparison can still be sampled, and what is said if not."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from nights import checkpoint
from snapshots import recorded

from taugrid.orchestrator.baseline.snapshot import Network
from taugrid.orchestrator.nightly.judging import why_no_second_look
from taugrid.workers.network.checkpoint import weights_file, weights_sha256


def pair(new, old, weights="ema"):
    return tuple(SimpleNamespace(network=network, settings={"weights": weights}) for network in (new, old))


def loaded(folder):
    return Network(weights_sha256(weights_file(folder)), {"timesteps": 1000}, None, str(folder))


@pytest.fixture
def both(tmp_path):
    return loaded(checkpoint(tmp_path / "new", 0.1)), loaded(checkpoint(tmp_path / "old"))


def test_two_folders_with_the_weights_they_had_can_be_sampled(both):
    assert why_no_second_look([pair(*both)], trust_code=False) is None


def test_the_same_weights_are_not_compared_with_themselves(both):
    assert "with themselves" in why_no_second_look([pair(both[1], both[1])], trust_code=False)


def test_what_is_gone_or_replaced_is_named(both, tmp_path):
    checkpoint(tmp_path / "old", 0.5)
    recorded(why_no_second_look([pair(*both)], False))
    shutil.rmtree(tmp_path / "old")
    assert "no folder" in why_no_second_look([pair(*both)], False)
    recorded(why_no_second_look([pair(both[0], Network("abc", {}, None, None))], False), "oracle")


def custom(place, source="s", digest=None, function="mine:network"):
    digest = weights_sha256(place) if digest is None and place is not None else digest
    return Network(digest, {}, source, None, function, None if place is None else str(place))


@pytest.fixture
def files(tmp_path):
    for name in ("new", "old"):
        torch.save({"scale": torch.tensor(float(len(name))), "name": name}, tmp_path / f"{name}.pt")
    return tmp_path / "new.pt", tmp_path / "old.pt"


def test_a_custom_network_needs_its_code_and_its_file(files):
    new, old = map(custom, files)
    assert why_no_second_look([pair(new, old)], trust_code=True) is None
    recorded(why_no_second_look([pair(new, custom(files[1], source="other"))], True), "changed")
    recorded(why_no_second_look([pair(new, custom(files[1], function="mine:other"))], True), "changed")
    assert "model.weights" in why_no_second_look([pair(new, custom(None, digest="all that it loads"))], True)
    shutil.copy(files[0], files[1])
    recorded(why_no_second_look([pair(new, old)], True), "different")
    files[1].unlink()
    recorded(why_no_second_look([pair(new, old)], True), "there")


def test_a_file_that_a_baseline_names_is_given_to_no_code_unless_the_user_trusts_it(files, tmp_path, monkeypatch):
    """A baseline file may come from somebody else, and the file of weights may be a pickle."""
    recorded(why_no_second_look([pair(*map(custom, files))], trust_code=False), "module")
    (tmp_path / "mine.py").write_text("network = None\n")
    monkeypatch.chdir(tmp_path)
    assert "--trust-code" in why_no_second_look([pair(*map(custom, files))], trust_code=False)
