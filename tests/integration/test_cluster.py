"""A Ray cluster with a token that taugrid did not start: runs that join it, and jobs that are submitted to it.

The tests share one head: each start of one costs what fifty tests of a function do.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from command import TINY, Started, events, sample_files, taugrid_alone
from ray_head import started_head
from shared import taugrid

import taugrid as package
from taugrid.config import Config, validate
from taugrid.errors import RunFailed
from taugrid.orchestrator.dispatch import cluster as joining
from taugrid.orchestrator.dispatch.capacity import ask_nodes
from taugrid.orchestrator.jobs.client import Jobs, exit_code, follow
from taugrid.workers import ray_compat
from taugrid.workers.ray_compat import accepts_token
from tools.machine import command_line, descendants

pytestmark = pytest.mark.filterwarnings("ignore:ssl=None is deprecated")  # how Ray calls aiohttp

NETWORK = """
import time
from pathlib import Path

import taugrid
from own_parts.scale import SCALE


def load():
    Path({place!r}).write_text(f"{{__file__}} {{taugrid.__file__}}")  # as a worker imported them
    return lambda x, t: SCALE * x


def slow():
    return lambda x, t: (SCALE * x, time.sleep(0.5 if len(x) > 2 else 0))[0]
"""

EXTRACTOR = """
from taugrid.eval.features.networks import Pixels


class Means(Pixels):
    def forward(self, x):
        return (x.float().mean(dim=(1, 2, 3), keepdim=True).flatten(1),)

    @staticmethod
    def get_provided_features_list():
        return ("means",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "means"
"""

CONFIG = {
    "name": "own",
    "model": {"callable": "own_network:load"},
    "sample": {"num_samples": 60, "batch_size": 30},
    "grid": {"steps": [2], "eta": [0.0]},
    "evaluate": {"extractor": "own_extractor:Means", "metrics": ["fid"]},
    "cluster": {"workers": 1},
}

PAGES = [Path(__file__).parents[2] / name for name in ("README.md", "docs/cluster.md")]


@pytest.fixture(scope="module")
def head():
    """A head whose token this process has, too."""
    with started_head(os.environ["RAY_AUTH_TOKEN"], dashboard=True) as head:
        yield head


@pytest.fixture(scope="module")
def at(head):
    return ("--address", head.dashboard)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """The current folder: a config and the modules that it names beside it, which no node sees."""
    folder = tmp_path / "mine"
    (folder / "own_parts").mkdir(parents=True)
    (folder / "own_network.py").write_text(NETWORK.format(place=str(tmp_path / "imported-from")))
    (folder / "own_extractor.py").write_text(EXTRACTOR)
    (folder / "own_parts" / "__init__.py").write_text("")
    (folder / "own_parts" / "scale.py").write_text("SCALE = 0.25\n")
    (folder / "mine.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.chdir(folder)
    return tmp_path


@pytest.mark.long
def test_a_run_sends_its_modules_to_a_cluster_that_it_joins_and_a_job_takes_them_along(head, at, mine):
    done = taugrid_alone("run", "mine.yaml", "--out", mine / "run", "--address", head.gcs, "--json")
    assert json.loads(done.stdout)["status"] == "done", "nothing else is on stdout"
    network, installed = (mine / "imported-from").read_text().split()
    assert "working_dir_files" in network
    assert installed == package.__file__
    done = taugrid("submit", "mine.yaml", "--out", mine / "run", "--ship", *at)
    assert "FID (lower" in done.stdout
    imported = (mine / "imported-from").read_text().split()
    assert all("working_dir_files" in file for file in imported), "taugrid as well"
    assert events(mine / "run")[-1]["missing"] == {}


@pytest.mark.long
def test_the_doctor_examines_each_node(head, tmp_path):
    done = taugrid_alone("doctor", "--address", head.gcs, "--out", tmp_path / "run", "--json")
    driver, node = (
        {check["name"]: check["state"] for check in about["checks"]} for about in json.loads(done.stdout)["nodes"]
    )
    assert driver.keys() >= {"cluster", "token"}
    assert node.keys() >= {"torch", "run directory", "weights", "versions"}
    assert "error" not in {*driver.values(), *node.values()}
    assert os.environ["RAY_AUTH_TOKEN"] not in done.stdout
    assert not list(tmp_path.iterdir()), "neither a run directory nor a probe is left"


@pytest.mark.long
def test_a_node_that_is_silent_or_raises_has_no_answer(ray_session):
    def broken_there(about):
        raise ValueError(f"{about} is broken")

    [slow] = ask_nodes(lambda seconds: time.sleep(seconds), 60, 1)
    [broken] = ask_nodes(broken_there, "torch", 60)
    [fine] = ask_nodes(lambda number: number + 1, 1, 60)
    assert (slow.value, broken.value) == (None, None)
    assert "no answer" in slow.error
    assert "ValueError" in broken.error
    assert (fine.value, fine.error) == (2, "")


@pytest.mark.long
def test_another_taugrid_on_the_cluster_is_2(at, mine, monkeypatch):
    monkeypatch.setattr(package, "__version__", "99.0")
    done = taugrid("submit", "gaussian", "--out", mine / "run", *at, code=2)
    assert "taugrid 99.0" in done.stdout
    assert "--ship" in done.stdout


def test_any_exit_code_of_a_command_comes_back(head):
    """A job can only be `taugrid run`, which never ends with 3: here a shell does. A driver that is killed has none.

    Ray's head takes 10 s, and its agent starts two jobs in 8; no other test of the fast tier sends one to a cluster.
    """
    jobs = Jobs(head.dashboard)
    for job, entrypoint in (("three-1", "sleep 1; echo one; sleep 1; echo two; exit 3"), ("killed-1", "kill -9 $$")):
        jobs.client.submit_job(entrypoint=entrypoint, submission_id=job)
    printed = []
    assert exit_code(follow(jobs, "three-1", printed.append)) == 3
    assert "".join(printed).splitlines()[-2:] == ["one", "two"]
    with pytest.raises(RunFailed, match="signal 9"):
        exit_code(follow(jobs, "killed-1", printed.append))


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.slow
def test_the_documents_commands_do_what_they_say(head, finished, tmp_path, monkeypatch):
    """Those of README and docs/cluster.md for a cluster; `tests/unit/test_cluster_configs.py` reads the others.

    The first joins the cluster, samples and scores. The training is of the run that this process's Ray did: where a
    cluster is makes no difference to Ray Train.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.dashboard)
    Path("my.yaml").write_text(yaml.safe_dump(TINY | {"name": "mine"}))
    shutil.copytree(finished / "models", "runs/mine/models")
    shutil.copy(finished / "run.json", "runs/mine")
    lines = [line for page in PAGES for line in re.findall(r"^ {4}(taugrid .+)$", page.read_text(), re.MULTILINE)]
    done = {}
    for command in dict.fromkeys(line.split(" #")[0].strip() for line in lines):
        if re.search("--address|submit", command) and "s3://" not in command:
            words = command.replace("HEAD:6379", head.gcs).replace("/shared", str(tmp_path)).split()[1:]
            joins = words[0] == "run"  # a process has one Ray, and this one may have it
            done[command] = taugrid_alone(*words) if joins else taugrid(*words)
    kinds = [command.split()[1] for command in done]
    assert kinds == ["run", "submit", "submit"]
    _, followed, *_, unfollowed = done.values()
    assert "FID" in followed.stdout
    assert unfollowed.stdout == "mine-2\n"
    assert sample_files(tmp_path / "runs/mine") == sample_files(finished)
    assert sum(event["event"] == "worker" for event in events(tmp_path / "runs/mine", 0)) == 2
    follow(Jobs(head.dashboard), "mine-2", print)  # until it has ended


@pytest.mark.long
def test_submits_at_once_get_ids_of_their_own_and_nobody_elses(head, tmp_path, monkeypatch):
    """Both choose an id before either has it. The jobs end soon: the cluster has another version."""
    both, clients = threading.Barrier(2), [Jobs(head.dashboard), Jobs(head.dashboard)]
    monkeypatch.setattr(package, "__version__", "99.0")
    clients[0].client.submit_job(entrypoint="true", submission_id="both-7")
    for jobs in clients:

        def meet(waits=iter([60]), submit=jobs.client.submit_job, **job):  # noqa: B008
            for seconds in waits:  # at the first time
                both.wait(seconds)
            return submit(**job)

        monkeypatch.setattr(jobs.client, "submit_job", meet)
    oracle = {"name": "both", "data": {"name": "gaussian"}, "model": {"oracle": "gaussian"}}
    config = validate(Config, oracle, "test")
    with ThreadPoolExecutor(2) as threads:
        ids = list(threads.map(lambda jobs: jobs.submit(config, str(tmp_path / "run"), False, False), clients))
    assert sorted(ids) == ["both-8", "both-9"]


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.slow
def test_ctrl_c_leaves_a_job_running_and_names_the_commands_that_show_and_stop_it(at, mine, tmp_path):
    """The job sleeps, so that it does not take a core from the tests beside this one."""
    out = tmp_path / "run"
    settings = ("name=endless", "model.callable=own_network:slow", "evaluate.extractor=pixels")
    endless = [word for setting in (*settings, "sample.num_samples=100000") for word in ("--set", setting)]
    with Started(tmp_path / "log", "submit", "mine.yaml", "--out", out, *endless, *at) as run:
        run.wait_until(lambda: "starting 1 worker" in run.output)
        os.kill(run.process.pid, signal.SIGINT)
        run.wait(code=130, timeout=30)
        [line] = re.findall("^taugrid: job endless-1 runs on: .+", run.output, re.MULTILINE)
    shows, stops = (shlex.split(command) for command in re.findall("`(.+?)`", line))
    assert [pid for pid in descendants(1) if str(out) in command_line(pid)], "its driver goes on"
    with subprocess.Popen(shows, stdout=subprocess.PIPE, text=True) as follower:
        assert any("starting 1 worker" in line for line in follower.stdout)
        subprocess.run(stops, check=True)
    assert not [pid for pid in descendants(1) if str(out) in command_line(pid)], "its driver is gone"


@pytest.mark.long
@pytest.mark.parametrize(("token", "said"), [("0" * 64, "not accept"), ("", "demands")])
def test_a_cluster_that_demands_a_token_is_known_to_be_closed(head, at, config, tmp_path, monkeypatch, token, said):
    """A run is told in one line at once, where Ray prints 20 lines of C++ over 22 seconds; and who submits a job."""
    assert not accepts_token(head.gcs, None)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray is asked"))
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = taugrid("run", config, "--out", tmp_path / "run", "--address", head.gcs, code=2)
    assert said in done.stderr.splitlines()[-1]
    assert done.stderr.count(head.gcs) == 2  # connecting to it, and why not
    assert said in taugrid("submit", config, "--out", tmp_path / "run", *at, code=2).stderr


@pytest.mark.long
def test_mistakes_about_jobs_are_one_line(head, at, mine):
    for command, said in (
        (("submit", "mine.yaml", "--out", "relative", *at), "absolute path"),
        (("submit", "mine.yaml", "--out", "/x", "--set", "model.callable=not_mine:load", *at), "'not_mine'"),
        (("submit", "mine.yaml", "--out", "/x", "--address", "127.0.0.1:8265"), "http://HOST:8265"),
        (("submit", "mine.yaml", "--out", "/x", "--address", f"http://{head.gcs}"), "job server"),
    ):
        done = taugrid(*command, code=2)
        [line] = done.stderr.splitlines()
        assert said in line
        assert done.stdout == ""


@pytest.mark.long
def test_a_machine_that_is_no_node_of_the_cluster_is_told_so(head, config, tmp_path, monkeypatch):
    """Ray looks for a node for a minute, then speaks of attributes; where it finds another cluster's, it crashes."""
    monkeypatch.setattr(joining, "NODE_SECONDS", 0)
    monkeypatch.setattr(ray_compat, "node_ids_here", lambda: {"0" * 56})
    done = taugrid("run", config, "--out", tmp_path / "run", "--address", head.gcs, code=2)
    assert "this machine" in done.stderr.splitlines()[-1]
    assert "`taugrid submit`" in done.stderr


@pytest.mark.long
def test_ctrl_c_as_ray_starts_leaves_nothing_of_it_in_a_process_that_goes_on():
    """As a notebook's does: what had started of Ray lived on beside the next run's, and SIGTERM was Ray's."""
    command, here = [sys.executable, "-c", INTERRUPTED_START], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["True", "True", "[]"], done.stderr


INTERRUPTED_START = """
import os, signal
from tools.machine import descendants
from taugrid.config import Cluster
from taugrid.orchestrator.dispatch import cluster

cluster.prepare_embedded()
import ray
init, before = ray.init, signal.getsignal(signal.SIGTERM)

def interrupted(**options):
    init(**options)
    signal.raise_signal(signal.SIGINT)

ray.init = interrupted
try:
    with cluster.connected("local", Cluster()):
        pass
except KeyboardInterrupt:
    print(not ray.is_initialized(), signal.getsignal(signal.SIGTERM) == before, descendants(os.getpid()))
"""


@pytest.mark.long
@pytest.mark.chaos
@pytest.mark.slow
def test_scorers_of_a_machine_with_a_gpu_compute_scores_while_the_gpu_works(head, tmp_path):
    """D6, on a real Ray that believes in one GPU. With `scorer` left out of a session's pool, this waits in vain.

    On the way: a local run leaves a cluster of this machine alone. Ray by itself joins one that `ray start` began here,
    and refuses the CPUs that a private one is given.
    """
    (tmp_path / "small.yaml").write_text(WITH_A_GPU)
    command, here = [sys.executable, "-c", BELIEVES_IN_A_GPU, tmp_path], Path(__file__).parent
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    happened = events(tmp_path / "run")
    scorers = {event["worker"] for event in happened if event["event"] == "starting" and event.get("cpu_only")}
    assigned = [event for event in happened if event["event"] == "assigned"]
    kinds = {event["task"].split("/")[0] for event in assigned if event["worker"] in scorers}
    assert (kinds, len(scorers)) == ({"score"}, 1), "one for half of three CPUs"


WITH_A_GPU = """
name: small
model: {oracle: gaussian}
data: {name: gaussian, shape: [1, 4, 4]}
sample: {seed: 0, num_samples: 20, batch_size: 10}
grid: {steps: [2, 3, 4]}
evaluate: {metrics: [fid]}
cluster: {workers: 1, gpus_per_worker: 1, max_attempts: 1}
"""

BELIEVES_IN_A_GPU = """
import sys, time
from pathlib import Path
from unittest import mock
from taugrid.orchestrator.dispatch import cluster
cluster.prepare_embedded()
import ray
from taugrid.orchestrator.cli.main import main
from taugrid.orchestrator.dispatch import pool
from taugrid.workers.actor import Worker

folder = Path(sys.argv[1])

class OnAGpu(Worker):
    extracted = 0

    def _set_up(self):
        with mock.patch.object(ray, "get_gpu_ids", return_value=[]):  # torch has none to start
            return super()._set_up()

    def do(self, job):
        end = time.monotonic() + 60
        if type(job).__name__ == "ExtractJob" and isinstance(job.images, str) and ray.get_gpu_ids():
            self.extracted += 1
            while self.extracted > 1 and not [*folder.glob("run/scores/*.json")]:
                assert time.monotonic() < end, "no score is computed while the GPU works"
                time.sleep(0.1)
        return super().do(job)

class OfGpus(pool.Pool):
    def __init__(self, actor, *others):
        super().__init__(OnAGpu, *others)

pool.Pool = OfGpus
init = ray.init
ray.init = lambda *address, **options: init(*address, **options | {"num_cpus": 3, "num_gpus": 1})
sys.argv[1:] = ["run", str(folder / "small.yaml"), "--out", str(folder / "run")]
main()
"""
