"""A run directory that is there: looked at, run again, damaged, changed under its config."""

import json
import re
import shutil

import pytest
from command import events, sample_files, scores, taugrid_alone
from shared import taugrid

from taugrid.orchestrator.cli.text.runs import plan_text
from taugrid.orchestrator.rundir.directory import RunDir

pytestmark = pytest.mark.usefixtures("sketched")

CELLS = 6


@pytest.mark.long
def test_the_same_command_again_starts_no_cluster_and_changes_nothing(config, copy):
    before = sample_files(copy)
    times = {path: path.stat().st_mtime_ns for path in copy.glob("s*/**/*") if path.is_file()}
    done = taugrid("run", config, "--out", copy)
    assert "starting Ray" not in done.stderr
    assert [event["event"] for event in events(copy)] == ["session", "end"]
    assert sample_files(copy) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.long
def test_a_run_directory_is_a_config(copy):
    done = taugrid("run", copy, "--json")
    assert json.loads(done.stdout)["dir"] == str(copy)


def test_damaged_and_deleted_shards_alone_are_redone_to_the_same_bytes(config, copy):
    before, scored = sample_files(copy), scores(copy)
    cut, flipped, deleted = sorted(copy.glob("samples/*/part-000001.parquet"))[:3]
    cut.write_bytes(cut.read_bytes()[:-100])
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 1
    flipped.write_bytes(data)
    deleted.unlink()
    done = taugrid("run", config, "--out", copy)
    assert sample_files(copy) == before
    assert scores(copy) == scored
    did = [event for event in events(copy) if event.get("committed")]  # a busy machine may have made copies
    assert len({event["task"] for event in did if event["event"] == "extract"}) == 3
    assert len({event["task"] for event in did if event["event"] == "score"}) == 3
    assert {event["cell"] for event in did if event["event"] == "shard"} == {
        path.parent.name.split("-")[-1] for path in (cut, flipped, deleted)
    }
    assert len(list((copy / "damaged").iterdir())) == 2
    for path in (cut, flipped):
        assert f"damaged: {path.relative_to(copy)}" in done.stderr


@pytest.mark.long
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("sample.spacing=quadratic", "sample.spacing:"),
        ("train.steps=13", "train.steps: 12 -> 13"),
        ("grid={steps: [2]}", "grid:"),
    ],
)
def test_a_change_that_would_orphan_cells_is_refused(config, copy, change, named):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert named in taugrid("plan", config, "--out", copy, "--set", change, code=2).stderr
    done = taugrid("run", config, "--out", copy, "--set", change, code=2)
    assert named in done.stderr
    assert "--out" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_other_weights_under_a_cell_are_refused(config, copy):
    from safetensors.torch import load_file, save_file

    path = next(copy.glob("models/*/unet/*.safetensors"))
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)
    done = taugrid("run", config, "--out", copy, code=2)
    assert "with weights" in done.stderr
    verified = taugrid("verify", copy, code=1)
    assert "with weights" in verified.stdout
    assert "600 images decoded" in verified.stderr, "the images can be read without the weights"


@pytest.mark.long
def test_images_that_are_of_no_cell_any_more_are_said_and_read(copy):
    """As after an edit of one's own network, or of a checkpoint's files."""
    config = json.loads((copy / "config.json").read_text())
    config["train"]["learning_rate"] *= 2
    (copy / "config.json").write_text(json.dumps(config))
    assert "this config" in taugrid("status", copy).stdout
    verified = taugrid("verify", copy, code=1)
    assert "this config" in verified.stdout
    assert "1 model" in verified.stderr
    assert "600 images decoded" in verified.stderr


@pytest.mark.long
def test_damaged_scores_are_noticed_and_computed_again(config, copy):
    before = scores(copy)
    changed, wrong, folder = sorted((copy / "scores").glob("*.json"))[:3]
    changed.write_text(changed.read_text().replace('"num_samples": 100', '"num_samples": 101'))
    wrong.write_text("{}")
    folder.unlink()
    folder.mkdir()
    assert taugrid("verify", copy, code=1).stdout.count("changed since") == 3
    assert len(json.loads(taugrid("report", config, "--out", copy, "--json", code=4).stdout)["cells"]) == CELLS - 3
    taugrid("status", copy)
    taugrid("run", config, "--out", copy)
    assert scores(copy) == before
    assert len(list((copy / "damaged").iterdir())) == 3


@pytest.mark.long
def test_removed_features_are_not_missed_while_the_scores_are_there(config, copy):
    shutil.rmtree(copy / "features")
    assert "starting Ray" not in taugrid("run", config, "--out", copy).stderr


@pytest.mark.long
def test_files_of_a_later_version_with_more_in_their_metadata_are_whole(config, copy):
    """A key that a later version adds to the blob must not make every old file look damaged."""
    import pyarrow.parquet as pq

    from taugrid import parquet

    path = next(copy.glob("samples/*/part-000000.parquet"))
    table = pq.read_table(path)
    blob = json.loads(table.schema.metadata[b"taugrid"])
    with parquet.PartWriter(path, parquet.sample_schema(blob | {"invented_later": 1})) as part:
        part.write({name: table[name].to_pylist() for name in table.column_names})
        part.commit(replace=True)
    assert "damaged" not in taugrid("run", config, "--out", copy).stderr


@pytest.mark.long
def test_a_place_that_can_not_be_written_is_one_line(config, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file/below", "s3://user:word@bucket/x", "ftp://host/x"):
        done = taugrid("run", config, "--out", out, code=2)
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.long
@pytest.mark.parametrize("command", [("run", "CONFIG", "--out", "PLACE"), ("plan", "PLACE"), ("status", "PLACE")])
@pytest.mark.parametrize(("place", "said"), [("x" * 300, "too long"), ("circle/run", "Too many")])
def test_a_path_that_can_be_none_is_one_line(config, tmp_path, command, place, said):
    (tmp_path / "circle").symlink_to("circle")
    words = {"CONFIG": config, "PLACE": tmp_path / place}
    done = taugrid(*(words.get(word, word) for word in command), code=2)
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("taugrid: ")
    # `plan` takes a name as well, and a place that is not there for one.
    is_taken_for_a_name = command[0] == "plan" and place == "circle/run"
    assert ("no config" if is_taken_for_a_name else said) in done.stderr


@pytest.mark.long
def test_plan_status_verify_and_export(config, finished, tmp_path):
    plan = json.loads(taugrid("plan", config, "--out", tmp_path / "new", "--json").stdout)
    assert plan["network_evaluations"] == 100 * (2 + 4) * 3 == plan["network_evaluations_remaining"]
    assert plan["worker_seconds_remaining"] is None
    assert "time: unknown" in taugrid("plan", config, "--out", tmp_path / "new").stdout
    assert not (tmp_path / "new").exists()
    status = json.loads(taugrid("status", finished, "--json").stdout)
    assert status["network_evaluations_remaining"] == 0
    little = {"network_evaluations_remaining": 1, "worker_seconds_remaining": 0.2}
    assert "less than 1 s" in plan_text(status | little)
    assert status["evaluations_per_second_and_worker"] > 0
    assert re.search("600 images.*intact", taugrid("verify", finished).stdout)
    taugrid("export", finished, "S0002-eta0-", "--to", tmp_path / "png")
    files = sorted(path.name for path in (tmp_path / "png").iterdir())
    assert files == [*(f"{i:07d}.png" for i in range(100)), "SHA256SUMS"]
    assert "run directory" in taugrid("export", finished, "S0002-eta0-", "--to", finished, code=2).stderr
    assert "more than" in taugrid("export", finished, "S0002", "--to", tmp_path / "x", code=2).stderr


@pytest.mark.long
def test_verify_lists_what_is_damaged_and_touches_nothing(copy):
    """Beyond the images that the config asks for, too, and in what only records the run."""
    part, cut = sorted(copy.glob("samples/*/part-000000.parquet"))[:2]
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    cut.write_bytes(cut.read_bytes()[:-9])
    gone = next(copy.glob("samples/*/part-000001.parquet"))
    gone.unlink()
    beyond = gone.with_name("part-000099.parquet")
    beyond.write_bytes(bytes(data))
    (copy / "provenance.json").unlink()
    (copy / "run.json").write_text("[]")
    done = taugrid("verify", copy, "--json", code=1)
    found = {entry["path"]: entry["reason"] for entry in json.loads(done.stdout)["damaged"]}
    damaged = (part, cut, gone, beyond, copy / "provenance.json", copy / "run.json")
    assert set(found) == {str(path.relative_to(copy)) for path in damaged}
    assert "is missing" in found[str(cut.relative_to(copy))]
    assert part.read_bytes() == bytes(data)


@pytest.mark.long
def test_a_finished_run_that_may_only_be_read_can_be_looked_at(copy):
    (copy / "lease.json").symlink_to(copy / "nowhere" / "lease")  # even root can't write there
    for command in ("run", "report"):
        error = taugrid(command, copy, code=2).stderr
        assert "can't write" in error
        assert f"`taugrid status {copy}`" in error
    assert "600 images" in taugrid("status", copy).stdout


@pytest.mark.long
def test_a_lost_config_is_said_and_written_again_from_ones_own(config, copy):
    (copy / "config.json").unlink()
    for command in ("status", "run"):
        error = taugrid(command, copy, code=2).stderr
        assert "config.json" in error
        assert f"--out {copy}" in error
    error = taugrid("plan", config, "--out", copy, "--set", "grid={steps: [2]}", code=2).stderr
    assert "is missing" in error
    assert "taugrid itself" not in error
    taugrid("report", config, "--out", copy)
    assert "6 cells" in taugrid("status", copy).stdout


@pytest.mark.long
def test_a_second_run_in_the_same_directory_waits_for_nobody(config, copy):
    with RunDir(copy).lock():
        assert "another taugrid" in taugrid_alone("run", config, "--out", copy, code=2).stderr
