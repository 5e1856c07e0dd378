"""`verify` says what to do about each kind of damage, and doing that mends it."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import drive, flip, small_run
from nights import checkpoint, taugrid, write_config
from snapshots import recorded

from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.view.verify import Diagnosis, unfinished_in_words, verify
from taugrid.storage import LocalStorage

pytestmark = pytest.mark.usefixtures("sketched")

STAGES = {"run": ("train", "sample", "evaluate", "report"), "report": ("report",)}


def do(opened, command, root):
    return drive(opened, root, LocalStorage(root), STAGES.get(command, (command,)))[1]


@pytest.fixture(scope="module")
def finished(opened, tmp_path_factory):
    root = tmp_path_factory.mktemp("finished") / "run"
    do(opened, "run", root)
    return root


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def said(opened, root):
    rundir = RunDir(root)
    run = replace(opened, rundir=rundir)
    verified = verify(run, lambda count: None)
    assert verified.unfinished == []
    return Diagnosis(run, 0, verified)


def make_folder(path):
    path.unlink()
    path.mkdir()


def written(content):
    """Damage: this in place of what a file had."""
    return lambda path: path.write_bytes(content)


delete, spoil, empty, fill_with_garbage = Path.unlink, written(b"{"), written(b"{}"), written(b"\xff\xfe\x00garbage")


@pytest.mark.parametrize(
    ("pattern", "harm"),
    [
        ("samples/*/part-000000.parquet", flip),
        ("samples/*/part-000000.parquet", delete),
        ("samples/*/part-000000.parquet", make_folder),
        ("features/*/S*/part-*.parquet", flip),
        ("scores/*.json", spoil),
        ("tables/quality.json", spoil),
        ("provenance.json", written(b"[1]")),
        ("scorer.json", make_folder),
        ("plan.json", empty),
        ("tables/cells.parquet", flip),
        ("figures/quality.png", flip),
        ("report.json", spoil),
    ],
)
def test_a_run_makes_again_what_is_damaged(pattern, harm, opened, copy):
    harm(sorted(copy.glob(pattern))[0])
    found = said(opened, copy)
    assert {damage["next"] for damage in found.damaged} == {f"taugrid run {copy}"}
    [line] = found.advice
    assert line.startswith(f"`taugrid run {copy}` makes {len(found.damaged)} file")
    printed = do(opened, "run", copy)
    is_moved = harm is not delete and pattern.startswith(("samples", "features", "scores", "scorer"))
    assert ("to damaged/" in printed) == is_moved
    assert said(opened, copy).damaged == []


def require_removal(opened, root, path):
    """The one damage of a run is this file, and the way out its removal."""
    [damage] = said(opened, root).verified.damages
    assert damage.path == path
    recorded(damage.fix)
    path.unlink()
    assert said(opened, root).damaged == []


@pytest.mark.long
@pytest.mark.parametrize("pattern", ["features/*/reference-*/*.npz", "features/*/reference-*/*-floor-*.json"])
def test_damaged_statistics_of_the_reference_are_found_and_made_again_by_the_next_score(opened, copy, pattern):
    """A run without anything to score would not look at them."""
    [statistics] = copy.glob(pattern)
    fill_with_garbage(statistics)
    require_removal(opened, copy, statistics)
    delete(next(copy.glob("scores/*.json")))
    do(opened, "run", copy)
    assert statistics.exists()
    assert said(opened, copy).damaged == []


def test_an_edited_config_is_the_reason_why_images_are_of_no_cell(copy):
    """Then no run of the directory goes on: it would refuse to."""
    config = copy / "config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"batch_size": 10', '"batch_size": 5'))
    out, err = taugrid("verify", copy, code=1)
    for told in (out, taugrid("status", copy)[0], taugrid("run", copy, code=2)[1]):
        recorded(told, "changed")
    recorded(err, "continues")
    config.write_text(whole)
    taugrid("verify", copy)


def test_a_report_that_a_stopped_session_never_made_is_unfinished(copy):
    """Of a session that ended, the report was made, and may be removed."""
    shutil.rmtree(copy / "figures")
    delete(copy / "report.html")
    recorded(taugrid("verify", copy)[1], "figures")
    events = copy / "events/0001.jsonl"
    lines = events.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == "end"
    events.write_text("".join(lines[:-1]))
    out, err = taugrid("verify", copy, code=4)
    recorded(out, "intact")
    recorded(err, "figures")
    unfinished = json.loads(taugrid("verify", copy, "--json", code=4)[0])["unfinished"]
    assert {lack["path"] for lack in unfinished} == {"figures", "report.html"}
    recorded("\n".join(lack["reason"] for lack in unfinished))
    taugrid("report", copy)
    recorded(taugrid("verify", copy)[0], "everything")


def test_what_was_never_made_is_not_damage(opened, tmp_path):
    root = tmp_path / "run"
    do(opened, "sample", root)
    for path in (root / "samples").rglob("part-000000.parquet"):
        shutil.rmtree(path.parent)
        break
    rundir = RunDir(root)
    damages, _ = verify(replace(opened, rundir=rundir), lambda count: None)
    assert {damage.reason for damage in damages} == {"missing"}, "its events say that it was there"
    shutil.rmtree(root / "events")
    damages, unfinished = verify(replace(opened, rundir=rundir), lambda count: None)
    assert damages == []
    [reason] = {lack.reason for lack in unfinished}
    recorded(reason)
    [line] = unfinished_in_words(unfinished, rundir)
    recorded(line, "sampled")
    assert f"taugrid run {root}" in line


def test_a_run_that_is_damaged_and_unfinished_exits_as_damaged(opened, tmp_path):
    """1, for what the same command may not mend; 4 says that running it again is all there is to do."""
    root = tmp_path / "run"
    do(opened, "sample", root)
    shutil.rmtree(root / "events")
    first, *_, last = sorted((root / "samples").rglob("part-000000.parquet"))
    delete(last)
    taugrid("verify", root, code=4)
    flip(first)
    out, _ = taugrid("verify", root, "--json", code=1)
    found = json.loads(out)
    assert [one["path"] for one in found["damaged"]] == [str(first.relative_to(root))]
    assert found["unfinished"]


def test_a_score_whose_images_are_gone_is_marked_in_tables(opened, copy):
    first, second = opened.plan.cells
    notes = copy / "tables/quality.md"
    assert "are gone" not in notes.read_text()
    shutil.rmtree(copy / "samples" / first.name)
    do(opened, "report", copy)
    [line] = [line for line in notes.read_text().splitlines() if "are gone" in line]
    assert first.label in line
    assert second.label not in line
    assert "`taugrid run`" in line


def test_a_spoilt_record_of_a_model_is_found_and_report_writes_it_again(tmp_path):
    few = {"num_samples": 2, "batch_size": 2}
    config = write_config(tmp_path / "one.yaml", checkpoint(tmp_path / "network"), sample=few, grid={"steps": [1]})
    root = tmp_path / "run"
    with small_run(tmp_path, config.read_text()) as opened:
        do(opened, "sample", root)
        record = RunDir(root).model_record(opened.plan.models[0].id)
        whole, other = record.read_bytes(), RunDir(root).model_record("of-another-config")
        other.parent.mkdir()
        for path in (record, other):
            spoil(path)
        assert {damage.path for damage in said(opened, root).verified.damages} == {record, other}
        do(opened, "report", root)
        assert record.read_bytes() == whole
        assert [damage.path for damage in said(opened, root).verified.damages] == [other]


def test_lines_that_are_not_as_written_are_told_but_for_a_last_one_that_a_kill_tore(opened, copy):
    events = copy / "events/0001.jsonl"
    events.write_bytes(events.read_bytes() + b'{"torn')
    assert said(opened, copy).damaged == []
    events.write_bytes(b"junk\n" + events.read_bytes().replace(b'"cell": "', b'"cdll": "', 1))
    [damage] = said(opened, copy).verified.damages
    assert damage.path == events
    assert "2 lines " in damage.reason
    assert "remove" in damage.fix
    fill_with_garbage(events)
    [damage] = said(opened, copy).verified.damages
    assert damage.path == events
    recorded(damage.reason)
