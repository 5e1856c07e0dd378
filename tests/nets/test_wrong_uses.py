"""What a user gets wrong ends with its exit code and a line on stderr, without a traceback, and writes nothing."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from outside import files, taugrid, write_pngs

DATA = Path(__file__).parents[1] / "data"
OLD = DATA / "kept-run"

OK = "name: ok\nmodel: {oracle: gaussian}\ndata: {name: gaussian, shape: [1, 4, 4]}\ngrid: {steps: [2]}\n"

USES = [line.split(" | ") for line in (DATA / "wrong_uses.txt").read_text().splitlines()]
"""Exit code, words of a command and, for the config WRONG, a line in the place of a right one; first two right uses."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("wrong")
    shutil.copytree(OLD / "run", place / "run")
    shutil.copytree(OLD, place / "base", ignore=shutil.ignore_patterns("run"))
    shutil.copytree(OLD / "run", place / "damaged")
    part = min((place / "damaged").glob("samples/*/*.parquet"))
    part.write_bytes(part.read_bytes()[:-9])
    shutil.copytree(OLD / "run", place / "part")
    min((place / "part").glob("scores/*.json")).unlink()
    (place / "ok.yaml").write_text(OK)
    (place / "empty").mkdir()
    grey = np.random.default_rng(0).integers(0, 256, (20, 8, 8), np.uint8)
    write_pngs(place / "pngs", grey)
    write_pngs(place / "large", grey.repeat(2, 1).repeat(2, 2))
    return place


@pytest.mark.parametrize("use", USES, ids=lambda use: " ".join(use[1:]).replace("/", "."))
def test_a_wrong_use(folder, monkeypatch, tmp_path, use):
    code, words, *wrong = use
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "TORCH_HOME"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.chdir(folder)
    for text in wrong:
        right = [line for line in OK.splitlines() if line.partition(":")[0] != text.partition(":")[0]]
        Path("WRONG").write_text("\n".join([*right, text.replace("\\n", "\n")]))
    before = files(folder)
    ended = taugrid(*words.split(), code=int(code))
    after = files(folder)
    changed = {name for name in before | after if after.get(name) != before.get(name)}
    assert {Path(name).name for name in changed} <= {"ledger.jsonl"}, "which files verify has read"
    assert not list(tmp_path.rglob("*.*"))
    if code == "2":
        assert not ended.stdout or "--strict" in words
        lines = ended.stderr.splitlines()
        assert lines[0].startswith("Usage: ") or [line[:9] for line in lines].count("taugrid: ") == 1, ended.stderr
        assert max(map(len, lines)) < 1000
