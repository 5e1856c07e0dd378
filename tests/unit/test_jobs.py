"""What jobs accept and refuse: files of another cell, another run directory, numbers that are not finite."""

import gc
import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import pytest
import torch
from denoisers import of_time
from snapshots import raises

from taugrid import parquet, retries
from taugrid.config import Config, Data, validate
from taugrid.errors import DamagedFile, NotCommitted, NotFinite, RunFailed, WorkerRefusal
from taugrid.eval import score_cell, sources
from taugrid.eval.metrics.reference_statistics import read_all
from taugrid.images import encode_png
from taugrid.jobs import Result
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.plan.scoring import scoring_of
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir, confirm
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.work import work_kinds
from taugrid.orchestrator.work.sample import SampleWork
from taugrid.orchestrator.work.score import ScoreWork
from taugrid.orchestrator.work.survey import Survey
from taugrid.run_id import FORMAT, check_run
from taugrid.storage import LOCAL, LocalStorage
from taugrid.workers.data import load
from taugrid.workers.device import Device
from taugrid.workers.sample import sample_shard

pytestmark = pytest.mark.usefixtures("one_thread")

ORACLES = {
    "name": "x",
    "model": {"oracle": "gaussian"},
    "data": {"name": "gaussian", "shape": [1, 4, 4], "limit": 40},
    "evaluate": {"extractor": "pixels", "metrics": ["fid"]},
    "sample": {"seed": 0, "steps": 2, "num_samples": 20, "batch_size": 4, "shard_evaluations": 16},
    "grid": {"eta": [0.0, 1.0]},
}


class Here:
    """A run whose jobs are done in this process, with no Ray and no session."""

    def __init__(self, root, evaluate=None, **sample):
        sections = {"sample": ORACLES["sample"] | sample, "evaluate": ORACLES["evaluate"] | (evaluate or {})}
        self.config = validate(Config, ORACLES | sections, "test")
        self.plan, self.rundir = plan(self.config), RunDir(root)
        root.mkdir(exist_ok=True)
        self.scoring = scoring_of(self.config, self.plan)
        self.damages = []

    def survey(self):
        stages = frozenset({"sample", "evaluate"})
        return Survey(Run(self.config, self.plan, self.rundir), self.scoring, stages, self.set_aside)

    def set_aside(self, damage):
        self.damages.append(damage.reason)
        self.rundir.set_aside(damage)

    def tasks(self, *kinds):
        survey = self.survey()
        return [task for kind in work_kinds() if kind.name in kinds for task in kind(survey).tasks()]

    def do(self, *kinds):
        for kind in kinds:
            for task in self.tasks(kind):
                do(task.job)
        return self

    @property
    def reference_files(self):
        return sorted(self.rundir.features.glob("*/reference-*/part-*.parquet"))


IMAGES = {"num_samples": 200, "batch_size": 100}
"""Enough for scores with influences."""


def with_features(root, **sample):
    return Here(root, **sample).do("reference", "sample", "extract")


def do(job):
    return resolve_name(job.entry_point)(job, Device("cpu"))


def test_features_of_another_cell_are_not_scored(tmp_path):
    """Their indices are the same, so nothing but the metadata tells."""
    run = with_features(tmp_path / "run")
    one, other = run.plan.cells
    features = [run.rundir.feature_part(run.rundir.extractor_folder(run.scoring.extractor), cell, cell.shards[0])
                for cell in (one, other)]  # fmt: skip
    own = features[0].read_bytes()
    features[0].write_bytes(features[1].read_bytes())
    scoring = next(task.job for task in Here(tmp_path / "run").tasks("score") if task.cell.id == one.id)
    features[0].write_bytes(features[1].read_bytes())  # after the survey, which would have moved it away
    with pytest.raises(DamagedFile, match=other.id):
        do(scoring)
    again = Here(tmp_path / "run")
    [task] = again.tasks("extract")
    assert (task.job.path, len(again.damages)) == (str(features[0]), 1)
    do(task.job)
    assert features[0].read_bytes() == own
    again.do("score")


def test_fewer_samples_are_scored_though_whole_row_groups_follow_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr("taugrid.parquet.writer.ROWS_PER_GROUP", 2)
    job = with_features(tmp_path / "run").tasks("score")[0].job
    for wanted in (1, 3, 4):
        stream = score_cell.read_stream(replace(job, num_samples=wanted), "features")
        assert sum(map(len, stream())) == wanted


def test_a_late_job_keeps_the_score_and_the_influences_of_another(tmp_path, monkeypatch):
    """Of two drivers that score a cell differently, no score stands beside the influences of the other."""
    run, read = with_features(tmp_path / "run", **IMAGES), score_cell.read_stream
    job = run.tasks("score")[0].job
    score, influences = Path(job.path), Path(job.influence_path)

    def late():
        with monkeypatch.context() as other:
            other.setattr(score_cell, "read_stream", lambda *given: lambda: (1.5 * x for x in read(*given)()))
            return do(job)

    assert do(job).conflict is None
    made = score.read_bytes(), influences.read_bytes()
    assert late().conflict is not None
    assert do(job).conflict is None, "the same bytes are no conflict"
    assert (score.read_bytes(), influences.read_bytes()) == made
    score.unlink()  # the first died before it had named it
    assert late().conflict is None
    assert influences.read_bytes() != made[1]
    assert do(job).conflict is not None
    score.unlink()
    run.do("score")
    assert (score.read_bytes(), influences.read_bytes()) == made


@pytest.fixture
def scored(tmp_path):
    """A run without the influences of its first score; their path, that of the score, and what both were."""
    run = with_features(tmp_path / "run", **IMAGES).do("score")
    paths = [sorted(run.rundir.scores.glob(pattern))[0] for pattern in ("*.json", "*.parquet")]
    made = [path.read_bytes() for path in paths]
    paths[1].unlink()
    return run, paths, made


def test_a_driver_that_was_stopped_removes_no_score_that_its_successor_committed(tmp_path, scored):
    """It found the score without its influences, and its lease expired before it gave out the task."""
    run, paths, made = scored
    stopped = run.survey()
    assert [state.to_score for state in stopped.found.cells] == [True, False]
    assert [path.read_bytes() for path in run.rundir.damaged.iterdir()] == [made[0]], "set aside, not deleted"
    Here(tmp_path / "run", **IMAGES).do("score")
    [task] = ScoreWork(stopped).tasks()
    assert [path.read_bytes() for path in paths] == made
    assert do(task.job).conflict is None
    assert [path.read_bytes() for path in paths] == made


def test_a_driver_that_was_stopped_in_its_survey_leaves_a_newer_score_in_its_place(tmp_path, scored, monkeypatch):
    run, paths, made = scored
    removed = Listing.has_removed_images

    def stopped(*arguments):
        monkeypatch.setattr(Listing, "has_removed_images", removed)
        Here(tmp_path / "run", **IMAGES).do("score")
        return removed(*arguments)

    monkeypatch.setattr(Listing, "has_removed_images", stopped)
    assert any(state.to_score for state in run.survey().found.cells)
    assert [path.read_bytes() for path in paths] == made


def test_images_of_another_cell_are_not_extracted(tmp_path):
    run = Here(tmp_path / "run").do("sample")
    job = run.tasks("extract")[-1].job
    other = next(p for p in run.rundir.samples.glob("*/*.parquet") if p.parent != Path(job.images).parent)
    Path(job.images).write_bytes(other.read_bytes())
    with raises(DamagedFile):
        do(job)
    assert not Path(job.path).exists()


def test_a_result_says_what_its_file_holds_so_that_the_driver_need_not_read_it(tmp_path):
    run = Here(tmp_path / "run")
    for kind in ("reference", "sample", "extract"):
        for job in [task.job for task in run.tasks(kind)]:
            result = do(job)
            assert (result.part, result.created_file) == (parquet.inspect(Path(job.path)), True)


# The run directory


def claimed(root):
    run = Here(root)
    run.rundir.claim()
    return run


def test_a_run_directory_gets_its_id_once(tmp_path):
    run = claimed(tmp_path / "run")
    again = claimed(tmp_path / "run")
    assert run.rundir.run_id == again.rundir.run_id
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == {"run": run.rundir.run_id.id, "format": FORMAT}
    assert claimed(tmp_path / "other").rundir.run_id.id != run.rundir.run_id.id
    (tmp_path / "run" / "run.json").write_text("torn")
    assert claimed(tmp_path / "run").rundir.run_id.id != run.rundir.run_id.id
    check_run(claimed(tmp_path / "run").rundir.run_id, LOCAL)


@pytest.mark.parametrize("kind", ["sample", "extract", "score"])
def test_no_job_writes_where_the_run_directory_is_not(tmp_path, kind):
    """Below a lost mount is an empty folder, or none; a worker must write to neither."""
    root = tmp_path / "run"
    run = claimed(root)
    for before in ("reference", "sample", "extract")[: ["reference", "sample", "extract", "score"].index(kind)]:
        run.do(before)
    job = run.tasks(kind)[0].job
    aside = root.rename(tmp_path / "aside")
    with pytest.raises(WorkerRefusal):
        job.check_run()
    for make in (lambda: None, root.mkdir):
        make()
        with pytest.raises((WorkerRefusal, FileNotFoundError)):
            do(job)
        assert not list(tmp_path.glob("run/*")), "nothing was written"
    root.rmdir()
    aside.rename(root)
    do(job)
    confirm(job, Result(0.0, 1, True, size=Path(job.path).stat().st_size))


def test_a_file_that_is_made_after_its_mount_went_away_is_not_committed(tmp_path, monkeypatch):
    """A mount point stays, empty, and takes what is written. The mount goes after the job has looked for its run."""
    root, temporary = tmp_path / "run", LocalStorage.temporary
    job = claimed(root).tasks("sample")[0].job

    def unmounted(self, path):
        root.rename(tmp_path / "aside")
        root.mkdir()
        return temporary(self, path)

    monkeypatch.setattr(LocalStorage, "temporary", unmounted)
    with pytest.raises(WorkerRefusal):
        do(job)
    assert not [path for path in root.rglob("*") if path.is_file()]


def test_another_run_directory_in_the_same_place_is_refused(tmp_path):
    job = claimed(tmp_path / "run").tasks("sample")[0].job
    (tmp_path / "run").rename(tmp_path / "aside")
    claimed(tmp_path / "run")
    with pytest.raises(WorkerRefusal, match="different one"):
        do(job)
    assert not list((tmp_path / "run").glob("samples/*/*"))


SEAL = b"taugrid.sha256:"
FAULTS = {
    "cut": lambda data: data[:-1],
    "unsealed": lambda data: data.replace(SEAL, b"taugrid.sha257:"),
    "resealed": lambda data: data.replace(end := data.partition(SEAL)[2], bytes([end[0] ^ 1]) + end[1:]),
    "gone": None,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_commit_that_the_driver_does_not_see_is_none(tmp_path, monkeypatch, fault):
    pauses = []
    monkeypatch.setattr(retries.NEVER, "wait", lambda timeout: pauses.append(timeout))
    run = claimed(tmp_path / "run")
    job = run.tasks("sample")[0].job
    result = replace(do(job), size=Path(job.path).stat().st_size)
    confirm(job, result)
    if (spoilt := FAULTS[fault]) is None:
        Path(job.path).unlink()
    else:
        Path(job.path).write_bytes(spoilt(Path(job.path).read_bytes()))
    with pytest.raises(NotCommitted) as caught:
        confirm(job, result)
    assert job.path in str(caught.value)
    assert pauses == pytest.approx([0.1, 0.4, 1.6], rel=0.5), "a network file system may answer from its cache"
    (tmp_path / "run").rename(tmp_path / "aside")
    with raises(RunFailed):
        confirm(job, result)


# Numbers that are not finite


@pytest.mark.parametrize(("value", "clip"), [(float("nan"), "none"), (float("inf"), "x0")])
def test_a_network_that_is_not_finite_once_gives_no_image(tmp_path, value, clip):
    """Clipping x0 would make infinity white, and the images after it would look like any others."""
    run = Here(tmp_path / "run", clip=clip)
    job = run.tasks("sample")[0].job

    @of_time
    def model(x, t):
        output = torch.zeros_like(x)
        if t == job.tau[-1]:
            output[-1, 0, 0, 0] = value
        return output

    with pytest.raises(NotFinite):
        sample_shard(job, model, Device("cpu"))
    assert not list(tmp_path.rglob("*.parquet"))
    sample_shard(job, of_time(lambda x, t: torch.zeros_like(x)), Device("cpu"))


# Growth


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in (root / "samples").rglob("*.parquet")}


@pytest.fixture
def at_once(tmp_path):
    """The files of a run of 20 images that did not grow."""
    return files(Here(tmp_path / "once", num_samples=20).do("sample").rundir.root)


def growing(root, to=20):
    """A run of 14 images in shards of 8 and batches of 4, raised."""
    Here(root, num_samples=14).do("sample")
    return Here(root, num_samples=to)


def sampled(task):
    """Do a task and count the images that its network is asked for, once for each step."""
    asked = []
    network = Device("cpu").network(task.job.network, task.job.diffusion)

    def model(x, *where):
        asked.append(len(x))
        return network(x, *where)

    result = sample_shard(task.job, model, Device("cpu"))
    assert sum(asked) == result.images * len(task.job.tau) == task.cost
    return result


def test_more_samples_cost_what_is_new(tmp_path, at_once):
    """Only the 2 of the short batch are done twice."""
    grown = growing(tmp_path / "grown")
    pieces = grown.tasks("sample")
    assert sum(sampled(task).images for task in pieces) == 2 * (20 - 14 + 2)
    assert files(grown.rundir.root) == at_once
    assert not grown.tasks("sample")
    event = SampleWork.event(pieces[0], Result(1.0, 4, True), True)[1]
    assert (event["images"], event["copied"], event["evaluations"]) == (4, 4, 8)


@pytest.mark.parametrize("fault", [lambda path: path.write_bytes(path.read_bytes()[:-40]), Path.unlink])
def test_a_file_that_broke_since_it_was_found_is_sampled_whole(tmp_path, at_once, fault):
    grown = growing(tmp_path / "grown")
    [job, *_] = [task.job for task in grown.tasks("sample") if task.job.kept]
    fault(Path(job.path))
    job = replace(job, replaces=grown.rundir.version(Path(job.path)) or job.replaces)
    assert do(job).images == 8
    assert Path(job.path).read_bytes() == at_once[str(Path(job.path).relative_to(grown.rundir.root))]


def test_images_of_other_weights_are_not_copied(tmp_path):
    [job, *_] = [task.job for task in growing(tmp_path / "run").tasks("sample") if task.job.kept]
    assert do(replace(job, metadata=job.metadata | {"weights_sha256": "0" * 64})).images == 8


def test_another_file_than_the_one_to_replace_is_kept(tmp_path):
    """A copy of a shard that took so long that the shard has grown meanwhile must not make it short again."""
    [job, *_] = [task.job for task in growing(tmp_path / "run", to=15).tasks("sample")]
    Here(tmp_path / "run", num_samples=20).do("sample")
    before = Path(job.path).read_bytes()
    assert not do(job).created_file
    assert Path(job.path).read_bytes() == before


def test_a_short_file_that_only_its_time_or_its_number_tells_from_the_one_to_replace_is_replaced(tmp_path, at_once):
    """As after `touch`, or on a mount with its own numbers of files: it was kept, and its shard counted as done."""
    for task in growing(tmp_path / "run").tasks("sample"):
        if task.job.replaces is not None:
            os.utime(task.job.path)
        assert do(task.job).created_file
    assert files(tmp_path / "run") == at_once


# The reference in parts


@pytest.fixture
def parts_of_8(monkeypatch):
    """The reference's 40 images are 5 parts; a row group would be 1024 images."""
    monkeypatch.setattr(sources, "PART_IMAGES", 8)


def scores(run):
    run.do("reference", "sample", "extract", "score")
    return {path.name: path.read_bytes() for path in run.rundir.scores.iterdir()}


def test_a_reference_in_parts_gives_the_scores_of_one_file_to_the_bit(tmp_path, parts_of_8, monkeypatch):
    parts = Here(tmp_path / "parts")
    tasks = [(task.key, task.cost) for task in parts.tasks("reference")]
    assert tasks == [(f"reference/{number}", 8) for number in range(5)]
    assert all(task.requires >= {"reference/0", "reference/4"} for task in parts.tasks("score"))
    assert work_kinds()[0].name == "reference", "it goes out first"
    found = scores(parts)
    assert len(parts.reference_files) == 5
    monkeypatch.setattr(sources, "PART_IMAGES", 4096)
    one = Here(tmp_path / "one")
    assert scores(one) == found
    assert len(one.reference_files) == 1
    assert np.array_equal(*(np.concatenate(list(read_all(run.reference_files))) for run in (parts, one)))


def test_of_a_reference_in_parts_only_what_is_missing_is_made(tmp_path, parts_of_8):
    path = Here(tmp_path / "parts").do("reference").reference_files[3]
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    again = Here(tmp_path / "parts")
    [task] = again.tasks("reference")
    do(task.job)
    assert (task.key, path.read_bytes(), len(again.damages)) == ("reference/3", before, 1)


@pytest.mark.parametrize("form", ["folder", "npz", "parquet"])
def test_external_images_are_read_in_parts_and_checked_there(tmp_path, parts_of_8, form):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 4, 4), dtype=np.uint8)
    path = tmp_path / f"images{'' if form == 'folder' else '.' + form}"
    write_images(path, pixels)
    source = sources.open_images(str(path))
    assert len(source.parts_sha256) == 3
    for number, (start, stop) in enumerate(sources.part_bounds(20)):
        batches = list(sources.batches(source, 3, start, stop, source.parts_sha256[number]))
        assert np.array_equal(np.concatenate([batch.images for batch in batches]), pixels[start:stop])
        assert np.concatenate([batch.indices for batch in batches]).tolist() == list(range(start, stop))
    run = Here(tmp_path / "run", evaluate={"reference": str(path)})
    jobs = [task.job for task in run.tasks("reference")]
    pixels[9] ^= 1
    write_images(path, pixels)
    do(jobs[0])
    with pytest.raises(WorkerRefusal, match="SHA-256"):
        do(jobs[1])
    assert [file.name for file in run.reference_files] == ["part-000000.parquet"]


def write_images(path, pixels):
    if path.suffix == ".npz":
        np.savez(path, pixels.transpose(0, 2, 3, 1))
    elif path.suffix == ".parquet":
        with parquet.PartWriter(path, parquet.picture_schema({})) as part:
            part.write(parquet.pictures(pixels, 0))
            part.commit(replace=True)
    else:
        path.mkdir(exist_ok=True)
        for number, image in enumerate(pixels):
            (path / f"{number:02d}.png").write_bytes(encode_png(image))


def test_a_file_of_decoded_images_that_changed_is_not_believed(tmp_path, monkeypatch):
    """A worker maps what its node decoded once; the images that a job reads are hashed as they are read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 1, 4, 4), dtype=np.uint8)
    write_images(tmp_path / "images", pixels)
    section = Data(name="folder", root=str(tmp_path / "images"), shape=(1, 4, 4))
    whole, rows = load.content_fingerprint(section), load.fingerprint(load.load_images(section)[4:8])
    assert np.array_equal(load.load_known_rows(section, 4, 8, rows), pixels[4:8])
    [decoded] = (tmp_path / "cache").rglob("*.npy")
    data = bytearray(decoded.read_bytes())
    data[-16 * 12 + 16 * 5] ^= 1  # in image 5
    with decoded.open("r+b") as file:
        file.write(data)
    load.load_known_rows(section, 8, 12, load.fingerprint(pixels[8:12]))
    for known in (lambda: load.load_known_rows(section, 4, 8, rows), lambda: load.load_known_images(section, whole)):
        with pytest.raises(WorkerRefusal):
            known()


def test_a_task_that_waits_holds_no_job(tmp_path):
    """A run may have millions of tasks, of 0.32 kB on average here; when each held its job, it was 0.96."""
    run = Here(tmp_path / "run", num_samples=2_000, batch_size=1)
    run.tasks("sample", "extract")  # imports, and what is read once
    gc.collect()
    tracemalloc.start()
    tasks = run.tasks("sample", "extract")
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held / len(tasks) < 500
