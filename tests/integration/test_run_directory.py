"""A run directory that is there: looked at, run again, damaged, changed under its config."""

import json

import pyarrow.parquet as pq
import pytest
from command import events, sample_files, scores
from safetensors.torch import load_file, save_file
from shared import taugrid
from snapshots import recorded

from taugrid import parquet

pytestmark = pytest.mark.usefixtures("sketched")


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
    for command in ("plan", "run"):
        [line] = taugrid(command, config, "--out", copy, "--set", change, code=2).stderr.strip().splitlines()
        assert named in line
        assert "--out" in line
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


@pytest.mark.long
def test_other_weights_under_a_cell_are_refused(config, copy):
    path = next(copy.glob("models/*/unet/*.safetensors"))
    tensors = load_file(path)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, path)
    done = taugrid("run", config, "--out", copy, code=2)
    assert "with weights" in done.stderr
    verified = taugrid("verify", copy, code=1)
    assert "with weights" in verified.stdout
    assert "600 images decoded" in verified.stderr, "the images can be read without the weights"


@pytest.mark.long
def test_files_of_a_later_version_with_more_in_their_metadata_are_whole(config, copy):
    """A key that a later version adds to the blob must not make every old file look damaged."""
    path = next(copy.glob("samples/*/part-000000.parquet"))
    table = pq.read_table(path)
    blob = json.loads(table.schema.metadata[b"taugrid"])
    with parquet.PartWriter(path, parquet.sample_schema(blob | {"invented_later": 1})) as part:
        part.write({name: table[name].to_pylist() for name in table.column_names})
        part.commit(replace=True)
    assert "damaged" not in taugrid("run", config, "--out", copy).stderr


@pytest.mark.long
@pytest.mark.parametrize("place", ["x" * 300, "circle/run", "file", "file/below"])
def test_a_path_that_can_be_none_is_one_line(config, tmp_path, place):
    (tmp_path / "circle").symlink_to("circle")
    (tmp_path / "file").write_text("")
    for command in (("run", config, "--out"), ("plan",), ("status",)):
        [line] = taugrid(*command, tmp_path / place, code=2).stderr.strip().splitlines()
        assert line.startswith("taugrid: ")


@pytest.mark.long
def test_a_lost_config_is_said_and_written_again_from_ones_own(config, copy):
    (copy / "config.json").unlink()
    for command in ("status", "run"):
        error = taugrid(command, copy, code=2).stderr
        assert "config.json" in error
        assert f"--out {copy}" in error
    recorded(taugrid("plan", config, "--out", copy, "--set", "grid={steps: [2]}", code=2).stderr, "changed")
    taugrid("report", config, "--out", copy)
    assert "6 cells" in taugrid("status", copy).stdout
