"""Runs in a bucket, with the jobs in this process: the same files as in a folder, in few requests, whatever fails."""

import json
import re
import signal
import threading
import time
from base64 import b64encode
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
from buckets import AT_LENGTH, AZURE_EXPIRED, SECRET, quick_retries
from in_process import CONFIG, drive, small_run
from nights import taugrid
from snapshots import raises, recorded

from taugrid import parquet, retries
from taugrid.errors import RunFailed, StoreError, UserError, WorkerRefusal
from taugrid.jobs import SavedNetwork
from taugrid.orchestrator.opened import open_config
from taugrid.orchestrator.rundir import lease
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.events import Events, read_events
from taugrid.orchestrator.rundir.ledger import MAX_SUPERSEDED, Ledger
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.view.inspection import describe
from taugrid.orchestrator.view.verify import verify
from taugrid.storage import files, objects, open_place, pieces, replacing, requests
from taugrid.storage.objects import ObjectStorage, url
from taugrid.workers.actor import Worker
from taugrid.workers.content import verified_copy
from taugrid.workers.device import WAITING

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

FOLDERS = ("samples", "features", "scores")

EACH = pytest.mark.parametrize(
    "store", ["s3", *(pytest.param(name, marks=pytest.mark.long) for name in ("gs", "az"))], indirect=True
)
"""A test for each store, of which `make test` runs that for S3."""

ONE_CELL = CONFIG.replace("eta: [0.0, 1.0]", "eta: [1.0]")
"""Of two shards: a run makes over a hundred requests, each of which takes the server some milliseconds."""


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with small_run(tmp_path_factory.mktemp("config"), ONE_CELL) as run:
        yield run


@pytest.fixture(scope="module")
def local(opened, tmp_path_factory):
    """A run in a folder."""
    rundir = RunDir(tmp_path_factory.mktemp("local") / "run")
    drive(opened, rundir.root, rundir.storage)
    return rundir


@pytest.fixture(scope="module")
def expected(local):
    """The bytes of every file that a run in a folder is for."""
    return results(local.root, local.storage)


def results(root, storage):
    files = [path for folder in FOLDERS for pattern in ("*", "*/*", "*/*/*")
             for path in storage.stats(root / folder, pattern) if path.suffix]  # fmt: skip
    return {path.relative_to(root).as_posix(): storage.read(path) for path in files}


def put(storage, path, data):
    with replacing(path, storage) as temporary:
        temporary.write_bytes(data)


@AT_LENGTH
def test_a_run_in_a_bucket_makes_the_same_bytes_and_goes_on_where_it_was(opened, local, expected, bucket):
    root, storage = bucket
    outcome, printed = drive(opened, root, storage)
    assert outcome.missing == {}, printed
    assert results(root, storage) == expected
    events = [[event["event"] for event in read_events(rundir)] for rundir in (RunDir(root, storage), local)]
    assert events[0] == events[1]
    everything = storage.walk(root)
    assert len(everything) > 10
    assert not [path for path in everything if SECRET.encode() in storage.read(path)], "no credential is in the run"
    assert SECRET not in printed
    _, printed = drive(opened, root, storage)
    assert "to do" not in printed, "nothing is left"
    assert results(root, storage) == expected
    gone = next(path for path in storage.list(root / "samples", "*/*"))
    storage.delete(gone)
    _, printed = drive(opened, root, storage)
    assert "1 shard to sample" in printed
    assert results(root, storage) == expected
    assert verify(replace(opened, rundir=RunDir(root, storage)), lambda n: None) == ([], [])


def error_recorded(caught):
    """The error's text is the recorded one, but for the bucket's name."""
    recorded(re.sub(r"bucket-\w+", "BUCKET", str(caught.value)))


@pytest.mark.long
@EACH
def test_requests_that_fail_change_nothing(opened, expected, bucket, store, monkeypatch):
    quick_retries(monkeypatch)
    root, storage = bucket
    failed = store.failed
    with store.failing(0.1, 1):
        outcome, printed = drive(opened, root, storage)
    assert store.failed - failed >= 3, "some did fail"
    assert outcome.missing == {}, printed
    assert results(root, storage) == expected


@AT_LENGTH
def test_requests_of_a_run_that_is_done_do_not_grow_with_its_files(opened, bucket, store, monkeypatch):
    """A list tells the versions of a thousand files, and the ledger what they hold."""
    root, storage = bucket
    drive(opened, root, storage)
    before = store.requests.copy()
    rundir = RunDir(root, storage)
    for cell in opened.plan.cells:
        assert len(rundir.sampled(cell, None, True, pytest.fail, Listing(rundir))) == len(cell.shards)
    used = store.requests - before
    assert used["LIST"] == len(opened.plan.cells) + 1, "a list for each cell, and one for the ledger"
    assert used.total() - used["LIST"] <= len(pieces(storage, root / "ledger.jsonl")), "and the ledger itself"


@EACH
def test_to_write_a_ledger_anew_asks_for_no_file(bucket, store):
    """Each file was asked for alone, before anything is said: an hour for 100,000 of them."""
    root, storage = bucket
    old = Ledger(root, storage)
    old.keep()
    names = [root / f"samples/S0002/part-{number:06d}.parquet" for number in range(50)]
    for number in range(MAX_SUPERSEDED + 2):
        old.add(names[0], str(number), parquet.PartSummary(0, 3, {"cell": "c"}))
    for name in names[1:]:
        old.add(name, "1", parquet.PartSummary(0, 3, {"cell": "c"}))
    old.flush()
    before = store.requests.copy()
    Ledger(root, storage).keep()
    assert (store.requests - before).total() < 10
    again = Ledger(root, storage)
    known = again.find(names[0], str(MAX_SUPERSEDED + 1)), again.find(names[-1], "1")
    assert known == 2 * (parquet.PartSummary(0, 3, {"cell": "c"}),)
    assert storage.read(root / "ledger.jsonl").count(b"\n") == len(names)


@pytest.mark.long
def test_the_requests_a_shard_that_the_documentation_tells(opened, tmp_path, s3, monkeypatch):
    """docs/storage.md, "How many requests": the difference between 12 shards and 4, each sampled and extracted."""
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 600.0)  # each beat has requests of its own
    used = {}
    for n in (20, 60):
        root, storage = open_place(f"s3://{s3.bucket()}/run", "--out")
        (tmp_path / "small.yaml").write_text(CONFIG)
        sized = open_config(str(tmp_path / "small.yaml"), [f"sample.num_samples={n}"], str(tmp_path / "unused"))

        there, used[n] = replace(sized, rundir=RunDir(root, storage)), []
        session, check = partial(drive, sized, root, storage), partial(verify, there, lambda images: None)
        for work in (session, session, partial(describe, there), check):
            before = s3.requests.total()
            work()
            used[n].append(s3.requests.total() - before)
    first, again, status, verified = ((b - a) / 8 for a, b in zip(used[20], used[60], strict=True))
    assert first == pytest.approx(15.0, abs=0.5)
    assert again == pytest.approx(0, abs=0.3)
    assert status == 0
    assert verified == 3


@EACH
def test_a_file_that_someone_else_made_with_other_bytes_is_kept_and_told_of(bucket):
    root, storage = bucket
    schema = parquet.number_schema({}, ["x"])

    def write(value):
        with parquet.PartWriter(root / "part-000000.parquet", schema, storage) as part:
            part.write({"index": [0], "x": [value]})
            return part.commit(replace=False), part.conflict

    assert write(1.0) == (True, None)
    assert write(1.0) == (False, None), "who comes second finds the same bytes"
    assert write(2.0) == (False, parquet.OTHER_BYTES)
    assert [list(x) for _, x in parquet.read_numbers(root / "part-000000.parquet", "x", storage)] == [[1.0]]


@EACH
def test_an_object_that_changes_while_it_is_read_is_no_mixture(bucket):
    root, storage = bucket
    put(storage, root / "big", bytes(100_000))
    with storage.readable(root / "big") as file:
        put(storage, root / "big", b"\1" * 100_000)
        with pytest.raises(StoreError) as caught:
            file.read(10)
    error_recorded(caught)
    assert caught.value.filename == url(root / "big")


@EACH
def test_weights_that_someone_has_replaced_are_refused_with_their_url(bucket):
    root, storage = bucket
    put(storage, root / "weights", b"others")
    with pytest.raises(WorkerRefusal) as caught, verified_copy(root / "weights", "0" * 64, storage):
        raise AssertionError
    error_recorded(caught)
    assert SavedNetwork("x", "", "", storage) != SavedNetwork("x", "", "")


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@AT_LENGTH
@pytest.mark.parametrize("spoilt", [pytest.param(flipped, marks=pytest.mark.long), lambda data: b""])
def test_a_shard_that_was_overwritten_behind_our_back_is_set_aside_and_made_again(opened, expected, bucket, spoilt):
    root, storage = bucket
    drive(opened, root, storage)
    path = storage.list(root / "samples", "*/*")[0]
    put(storage, path, spoilt(storage.read(path)))
    _, printed = drive(opened, root, storage)
    assert "damaged:" in printed
    assert len(storage.list(root / "damaged", "*")) == 1
    assert results(root, storage) == expected


@EACH
def test_a_second_driver_is_refused_by_the_lease(bucket):
    root, storage = bucket
    with RunDir(root, storage).lock(), pytest.raises(UserError) as caught, RunDir(root, storage).lock():
        raise AssertionError
    error_recorded(caught)
    with RunDir(root, storage).lock():
        pass
    assert storage.list(root, "*") == []


@EACH
def test_what_two_sessions_append_is_read_as_one(bucket, monkeypatch):
    root, storage = bucket
    monkeypatch.setattr(files, "PIECE_BYTES", 30)
    path = root / "log.jsonl"
    for session in range(2):
        for n in range(3):
            storage.append(path, json.dumps({"session": session, "n": n}).encode() + b"\n")
        files.end_session(storage)
    names = [piece.name for piece in pieces(storage, path)]
    assert names == ["log.jsonl", *(f"log.jsonl.{number:06d}" for number in (1, 2, 3))], "none is of both"
    lines = b"".join(map(storage.read, pieces(storage, path))).splitlines()
    assert [json.loads(line) for line in lines] == [{"session": s, "n": n} for s in range(2) for n in range(3)]


@EACH
def test_ctrl_c_in_the_pause_of_an_append_loses_no_event(bucket, monkeypatch):
    """Google takes one write a second to an object: a driver spends most of its turns in that pause."""
    root, storage = bucket
    monkeypatch.setattr(type(storage), "rewrite_seconds", 0.5)
    rundir = RunDir(root, storage)
    events = Events(rundir)
    events.add("session", stages=["sample"])
    events.note("end", missing={})
    interrupt = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        events.flush()
    assert [event["event"] for event in read_events(rundir)] == ["session", "end"]
    events.flush()
    assert [event["event"] for event in read_events(rundir)] == ["session", "end"], "and none is written twice"


@pytest.mark.parametrize(("data", "status", "is_ours"), [(b"x", 503, True), (b"x", 409, False), (b"", 503, False)])
def test_a_file_with_our_bytes_is_ours_only_if_an_answer_may_have_been_lost(
    bucket, s3, tmp_path, monkeypatch, data, status, is_ours
):
    """409 says that the request did nothing; after 503 it may have been done. Empty files are alike: once, two drivers
    reserved one name for their events."""
    quick_retries(monkeypatch)
    root, storage = bucket
    put(storage, root / "file", data)
    (tmp_path / "finished").write_bytes(data)
    answers = [(status, "SlowDown")]
    with s3.refusing(lambda method, path: answers.pop() if answers and method == "PUT" else None):
        assert storage.commit(root / "file", tmp_path / "finished") is is_ours
    assert answers == []


# Stores that fail for a while


@pytest.fixture
def once_told(monkeypatch):
    """Set once a failure was told of, which is said at once."""
    told, failed = threading.Event(), retries.attempt_failed
    monkeypatch.setattr(retries, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(retries, "attempt_failed", lambda *given: [failed(*given), told.set()])
    return told


@pytest.mark.long
@pytest.mark.parametrize("how", ["silent", "refusing"])
def test_a_store_that_is_down_for_a_while_delays_the_run(opened, expected, bucket, store, monkeypatch, once_told, how):
    """Told once when it is long, and once when it is over; shorter than the run's patience, longer than the retries."""
    monkeypatch.setattr(retries, "STORE_PAUSES", (0.05, 0.1))
    down = store.silent() if how == "silent" else store.refusing(lambda method, path: (503, "ServiceUnavailable"))
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.1)  # requests that wait too
    small_seconds = objects.SMALL_SECONDS
    root, storage = bucket
    with ExitStack() as outage:
        is_first = iter([True])

        def end_once_told():
            once_told.wait(60)
            monkeypatch.setattr(objects, "SMALL_SECONDS", small_seconds)
            outage.close()

        def commit(storage, path, *given, commit=ObjectStorage.commit):
            if "samples" in path.parts and next(is_first, False):
                monkeypatch.setattr(objects, "SMALL_SECONDS", 1)  # only now: a slow machine is no outage
                outage.enter_context(down)
                threading.Thread(target=end_once_told).start()
            return commit(storage, path, *given)

        monkeypatch.setattr(ObjectStorage, "commit", commit)
        outcome, printed = drive(opened, root, storage)
    assert outcome.missing == {}, printed
    assert results(root, storage) == expected
    what = "did not answer" if how == "silent" else "answered 503(?: ServiceUnavailable)?"
    place = f"s3://{root.parts[1]}: the object store "
    [begins, ends] = [line for line in printed.splitlines() if line.startswith(place)]
    assert re.match(rf"{what} for [\d.]+ s; .* until [\d:]{{8}}\.", begins.removeprefix(place))
    assert re.fullmatch(r"answers again, .* [\d.]+ s", ends.removeprefix(place))


def test_an_outage_of_writes_is_told_although_reads_are_answered(monkeypatch):
    """Planted once: each answer ends the outage. A 404 is an answer too."""
    from obstore.exceptions import GenericError

    monkeypatch.setattr(retries, "STORE_PAUSES", (0.02,) * 50)
    monkeypatch.setattr(retries, "TELL_SECONDS", 0.1)
    said, tries = [], []

    def write():
        tries.append(requests.ask(lambda: "read", "s3", "s3://outage/there"))
        if not said and len(tries) < 30:
            raise GenericError("status code: 503")
        raise FileNotFoundError

    with retries.told(said.append), pytest.raises(FileNotFoundError):
        requests.ask(write, "s3", "s3://outage/log")
    assert [("trying again" in text, "answers again" in text) for text in said] == [(True, False), (False, True)]


def test_a_first_look_that_waits_says_so_and_ctrl_c_is_no_answer(monkeypatch):
    """Planted once: nothing is told without patience, and `answered` begins as true."""
    from obstore.exceptions import GenericError

    monkeypatch.setattr(retries, "TELL_SECONDS", 0.01)
    monkeypatch.setattr(retries, "STORE_PAUSES", (0.02,) * 6)
    said, answers = [], [GenericError("status code: 503"), GenericError("status code: 503"), KeyboardInterrupt]

    def look():
        raise answers.pop(0)

    token = retries.patient.set(False)
    with retries.told(said.append), pytest.raises(KeyboardInterrupt):
        requests.ask(look, "s3", "s3://outage/there")
    retries.patient.reset(token)
    (line,) = said
    assert re.search(r" 503 for [\d.]+ s; ", line)


@pytest.mark.parametrize(("seconds", "times"), [(0, 3), (30, 1)])
def test_a_request_under_way_when_the_run_ends_is_not_begun_again_for_long(monkeypatch, seconds, times):
    """Nor is it told to be. The next run has begun. Planted once: the event is read after the first attempt; `told`
    whatever has ended; the time counts from the second attempt."""
    from obstore.exceptions import GenericError

    monkeypatch.setattr(retries, "TELL_SECONDS", 0.0)
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(retries, "STORE_PAUSES", (0.02,))
    monkeypatch.setattr(retries, "over", threading.Event())
    clock, said, tries = [0.0], [], []
    monkeypatch.setattr(retries, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def ask():
        tries.append(1)
        clock[0] += seconds
        retries.over.set()
        retries.over = threading.Event()
        raise GenericError("status code: 503")

    with retries.told(said.append), pytest.raises(StoreError):
        requests.ask(ask, "s3", "s3://outage/there")
    assert (len(tries), said) == (times, [])


def test_a_command_that_only_looks_says_that_it_waits(bucket, store, monkeypatch, once_told):
    root, _ = bucket
    monkeypatch.setattr(retries, "STORE_PAUSES", (0.05,))
    with store.refusing(lambda method, path: None if once_told.is_set() else (503, "SlowDown")):
        _, said = taugrid("status", url(root), code=2)  # nothing is there
    begins, ends = [line for line in said.splitlines() if f"s3://{root.parts[1]}: " in line]
    assert ("503" in begins, "503" in ends) == (True, False)


@pytest.mark.parametrize("how", ["silent", "refusing"])
def test_a_run_that_ends_while_the_store_is_down_does_not_wait_for_it(bucket, store, monkeypatch, how):
    """Its lease is still read. Planted once: `sole_driver` does not set `retries.over`."""
    monkeypatch.setattr(objects, "LAST_SECONDS", 1)
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.5)
    monkeypatch.setattr(retries, "PATIENCE_SECONDS", 3600.0)
    down = store.silent() if how == "silent" else store.refusing(lambda method, path: (503, "ServiceUnavailable"))
    with ExitStack() as stack:

        def end():
            with RunDir(*bucket).lock():
                stack.enter_context(down)
                raise RunFailed("planted")

        with pytest.raises(RunFailed, match="planted"):
            end()
    assert not retries.over.is_set(), "the next run is patient again"


def test_a_worker_that_waits_for_the_store_sends_heartbeats(opened, expected, bucket, store, monkeypatch):
    """Planted once: `retries.waits` is not called. They never end the job: its file would be lost with it."""
    quick_retries(monkeypatch)
    root, storage = bucket
    answers, beats, workers = [(503, "SlowDown")] * 3, [], []
    monkeypatch.setattr(Worker, "beat", lambda worker, done, of, doing="": beats.append(doing))

    def refused(method, path):
        if not answers or method != "PUT" or "/samples/" not in path:
            return None
        workers[-1].stop()
        return answers.pop()

    def do(worker, job, do=Worker.do):
        workers.append(Worker(1))  # the one before was stopped
        return do(workers[-1], job)

    monkeypatch.setattr(Worker, "do", do)

    with store.refusing(refused):
        drive(opened, root, storage)
    assert answers == []
    assert beats.count(WAITING) >= 3
    assert results(root, storage) == expected


@pytest.mark.long
@AT_LENGTH
@pytest.mark.parametrize("ahead", [100, -100])
def test_a_store_whose_clock_differs_changes_nothing(opened, expected, bucket, store, monkeypatch, ahead):
    """`modified` is the store's time; a driver that compared it with its own would take new files for old ones."""
    root, storage = bucket
    monkeypatch.setattr(store, "ahead", ahead)
    drive(opened, root, storage)
    assert results(root, storage) == expected
    made = storage.walk(root)
    assert all(abs(stat.modified - time.time() - ahead) < 60 for stat in made.values())
    put(storage, root / ".left.tmp", b"of a dead driver")
    time.sleep(2.1)  # the store's clock has whole seconds
    _, printed = drive(opened, root, storage)
    assert "to do" not in printed
    assert not storage.exists(root / ".left.tmp")
    assert verify(replace(opened, rundir=RunDir(root, storage)), lambda n: None) == ([], [])
    parts = {path: stat for path, stat in storage.walk(root).items() if path.parts[-3] in FOLDERS}
    assert parts == {path: made[path] for path in parts}


@pytest.mark.long
@EACH
def test_credentials_that_expire_end_the_run_with_one_line_and_it_goes_on(opened, expected, bucket, store, monkeypatch):
    """S3 answers 400, also to HEAD, where no body says why; Azure answers 403."""
    quick_retries(monkeypatch)
    root, storage = bucket
    refusal = (403, AZURE_EXPIRED) if store.scheme == "az" else (400, "ExpiredToken")
    jobs = []
    monkeypatch.setattr(Worker, "do", lambda worker, job, do=Worker.do: [jobs.append(job), do(worker, job)][1])
    with store.refusing(lambda method, path: refusal if len(jobs) == 2 else None), pytest.raises(RunFailed) as caught:
        drive(opened, root, storage)
    jobs.clear()
    error_recorded(caught)
    drive(opened, root, storage)
    assert results(root, storage) == expected


# Other stores


def test_on_azure_a_name_that_is_taken_is_known_by_its_code(s3, tmp_path, monkeypatch):
    """Azure answers 409 for what S3 answers 412 for."""
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", s3.endpoint)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", b64encode(SECRET.encode()).decode())
    root, storage = open_place("az://container/run", "--out")
    (tmp_path / "file").write_bytes(b"x")
    before = s3.requests["PUT"]
    with s3.refusing(lambda method, path: (409, "BlobAlreadyExists")):
        assert storage.commit(root / "file", tmp_path / "file") is False
    assert s3.requests["PUT"] - before == 1


def test_where_an_object_takes_one_write_a_second_it_is_written_no_faster(bucket, s3, monkeypatch):
    """Google's limit, at moto's server."""
    pace = open_place("gs://bucket/run", "--out")[1].rewrite_seconds
    monkeypatch.setattr(ObjectStorage, "rewrite_seconds", pace)
    root, storage = bucket
    written, refused = {}, []

    def once_a_second(method, path):
        now = time.monotonic()
        if method == "PUT":
            if now - written.get(path, now - 1.0) < 1.0:
                refused.append(path)
                return 429, "SlowDown"
            written[path] = now
        return None

    with s3.refusing(once_a_second):
        for line in (b"one\n", b"two\n", b"three\n"):
            storage.append(root / "log", line)
    assert refused == []
    assert storage.read(root / "log") == b"one\ntwo\nthree\n"


def test_a_machine_whose_credentials_are_late_is_asked_again(monkeypatch):
    from obstore.exceptions import GenericError

    quick_retries(monkeypatch)
    late = "Generic S3 error: Error performing PUT http://169.254.169.254/latest/api/token in 1.0s - HTTP error: {}"
    none = "Generic S3 error: Error performing GET http://169.254.169.254/latest/ - non-2xx status code: {}"
    asked = []

    def answering(error, times):
        asked.clear()

        def call():
            asked.append(error)
            if len(asked) <= times:
                raise GenericError(error)
            return "answer"

        return lambda: requests.ask(call, "s3", "s3://bucket/run")

    refused = late.format("error sending request")
    assert answering(refused, 2)() == "answer"
    for error, times in ((refused, 7), (none.format("404"), 1)):
        with raises(StoreError):
            answering(error, 9)()
        assert len(asked) == times


# Places that can't be used

BAD = ["s3://user:word@bucket/run", "s3://bucket/run?token=word", "s3://", "s3://bucket/../run", "ftp://host/run"]


@pytest.mark.parametrize("text", BAD)
def test_a_url_that_is_no_place_is_one_line(text):
    with raises(UserError) as caught:
        open_place(text, "--out")
    assert not re.search("\n|word@|token=word", str(caught.value))


@pytest.mark.parametrize("endpoint", ["garbage", "127.0.0.1:9000", "http://", "ftp://host", "http://user:word@host:9"])
def test_an_endpoint_that_is_no_url_or_has_a_password_is_refused_before_anything_is_asked(monkeypatch, endpoint):
    """obstore panics at some of them."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with raises(UserError) as caught:
        open_place("s3://bucket/run", "--out")
    assert "word@" not in str(caught.value)


@EACH
@pytest.mark.parametrize("code", ["AccessDenied", "ExpiredToken"])
def test_a_place_that_refuses_us_is_one_line(bucket, store, code):
    root, storage = bucket
    with store.refusing(lambda method, path: (403, code)), pytest.raises(UserError) as caught:
        storage.require(root)
    error_recorded(caught)
    assert str(caught.value).startswith(f"{store.scheme}://bucket-")
    assert "\n" not in str(caught.value)
    status = 400 if code == "ExpiredToken" else 403
    with store.refusing(lambda method, path: (status, code)), pytest.raises(StoreError) as caught:
        storage.stat(root)  # an answer to HEAD has no body, which would have the code
    error_recorded(caught)


@EACH
def test_a_bucket_that_can_only_be_read_is_one_line_at_the_start(opened, bucket, store):
    root, storage = bucket
    no_writing = store.refusing(lambda method, path: (403, "AccessDenied") if method in ("PUT", "POST") else None)
    with no_writing, pytest.raises(UserError) as caught:
        drive(opened, root, storage)
    error_recorded(caught)


@EACH
@pytest.mark.parametrize(("ignored", "header"), [(str, "If-None-Match"), (dict, "If-Match")])
def test_a_store_that_ignores_a_condition_is_refused(bucket, monkeypatch, ignored, header):
    import obstore

    def put(*given, mode=None, plain=obstore.put, **options):
        return plain(*given, mode="overwrite" if isinstance(mode, ignored) else mode, **options)

    root, storage = bucket
    storage.require(root, to_write=True)
    monkeypatch.setattr(obstore, "put", put)
    with pytest.raises(UserError, match=f"ignores {header},"):
        storage.require(root, to_write=True)
    assert not storage.exists(root), "nothing is left of the test"


@EACH
def test_nobody_at_the_endpoint_and_a_bucket_that_is_not_there_are_one_line(monkeypatch, store):
    quick_retries(monkeypatch)
    root, storage = open_place(f"{store.scheme}://not-there/run", "--out")
    with raises(UserError):
        storage.require(root)
    for name in ("AWS_ENDPOINT_URL", "GOOGLE_BASE_URL", "AZURE_STORAGE_ENDPOINT"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    root, storage = open_place(f"{store.scheme}://bucket/run", "--out")
    with raises(UserError):
        storage.require(root)


def test_events_and_logs_name_objects_by_their_urls(opened, bucket, monkeypatch):
    """A path of an object has one slash, and tracebacks and reasons hold such paths."""
    root, storage = bucket

    def fails(worker, job):
        raise RuntimeError(f"{job.path}: planted")

    monkeypatch.setattr(Worker, "do", fails)
    with suppress(RunFailed):
        drive(opened, root, storage)
    rundir = RunDir(root, storage)
    reasons = [event["reason"] for event in read_events(rundir) if event["event"] == "failed"]
    logs = [storage.read(path).decode() for path in storage.list(root / "logs", "*")]
    assert min(len(reasons), len(logs)) > 0
    for text in reasons + logs:
        assert f"{rundir.shown}/" in text
        assert f"{root}/" not in text
