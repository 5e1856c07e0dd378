"""docs/nightly*.md: their YAML is valid, their shell parts run, and their schema is the one that is written."""

import ast
import copy
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import chdir, suppress
from pathlib import Path

import jsonschema
import nights
import pytest
import yaml
from ci_schemas import CRON_JOB, WORKFLOW, workflow
from nights import taugrid

from taugrid.errors import Exit
from taugrid.orchestrator.nightly.history import COLUMNS_ABOUT

DOCS = Path(__file__).parents[2] / "docs"
RECIPES, HISTORY = ((DOCS / f"nightly-{part}.md").read_text() for part in ("recipes", "history"))
begun = nights.begun
pytestmark = pytest.mark.usefixtures("one_thread", "sketched", "unreported")


def block(language, beginning=""):
    blocks = re.findall(rf"```{language}\n(.*?)```", RECIPES, re.DOTALL)
    (found,) = (text for text in blocks if text.startswith(beginning))
    return found


def actions():
    return workflow(block("yaml", "name: nightly"))


def cron_job():
    return yaml.safe_load(block("yaml", "apiVersion"))


def pod():
    return cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]


def container():
    return pod()["containers"][0]


def shell_parts():
    """The four ways, each as a script; places and recipients of mail are this test's own."""
    steps = {step["name"]: step["run"] for step in actions()["jobs"]["nightly"]["steps"] if "run" in step}
    cron = re.fullmatch(r"30 2 \* \* \* (.*)\n", block("cron"))[1]
    scron = [line for line in block("scrontab").splitlines() if not line.startswith("#SCRON")]
    return {
        "cron": cron.replace("/srv/nightly", ".").replace("mail -s", "echo"),
        "actions": f"{steps['nightly']}\n{steps['summary']}",
        "kubernetes": container()["args"][0],
        "slurm": re.fullmatch(r"30 2 \* \* \* (.*)", scron[0])[1],
    }


@pytest.fixture(scope="module")
def place(begun, tmp_path_factory):
    """A folder with a config, a baseline and a command `taugrid` that this process does, which has torch by then."""
    folder = tmp_path_factory.mktemp("nightly")
    shutil.copy(begun / "same.yaml", folder / "night.yaml")
    for kind in ("json", "parquet"):
        shutil.copy(begun / f"baseline.{kind}", folder)
    (folder / "bin").mkdir()
    script = folder / "bin/taugrid"
    script.write_text(f"#!{sys.executable} -S\n{ASKING}")
    script.chmod(0o755)
    return folder


ASKING = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as asked:
    asked.connect(os.environ["TAUGRID_SOCKET"])
    asked.sendall(repr((os.getcwd(), sys.argv[1:])).encode())
    asked.shutdown(socket.SHUT_WR)
    code, printed = eval(asked.makefile().read())
print(printed)
sys.exit(code)
"""


def do(asked):
    folder, arguments = ast.literal_eval(asked.makefile().read())
    with chdir(folder):
        try:
            answer = 0, " ".join(taugrid(*arguments))
        except AssertionError as error:
            answer = 1, str(error)
    asked.sendall(repr(answer).encode())


def run_shell(script, folder, environment):
    """Run a script of bash to its end in `folder`; does the commands `taugrid` that it gives."""
    with socket.socket(socket.AF_UNIX) as server:
        path = f"{tempfile.mkdtemp()}/socket"  # of 107 characters at most
        server.bind(path)
        server.listen()
        server.settimeout(0.05)
        with subprocess.Popen(
            ["bash", "-ec", script], cwd=folder, env=environment | {"TAUGRID_SOCKET": path}
        ) as process:
            while process.poll() is None:
                with suppress(TimeoutError):
                    asked, _ = server.accept()
                    with asked:
                        do(asked)
    shutil.rmtree(Path(path).parent)
    assert process.returncode == 0


@pytest.mark.long
@pytest.mark.parametrize("way", ["cron", "actions", "kubernetes", "slurm"])
def test_a_shell_part_runs(place, way, tmp_path):
    environment = {
        **os.environ,
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "GITHUB_RUN_ID": "42",
        "HISTORY": "history",
        "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
    }
    run_shell(shell_parts()[way], place, environment)
    assert list((place / "history/nights").glob("*/verdict.json"))
    if way == "actions":
        assert "night 42: ✅ identical" in (tmp_path / "summary.md").read_text()
    if way == "cron":
        assert "exit" not in (place / "night.log").read_text()


def test_the_workflow_is_what_github_takes():
    workflow = actions()
    jsonschema.validate(workflow, WORKFLOW)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(workflow | {"on": {"schedule": [{"cron": "30 2 * *"}]}}, WORKFLOW)
    (job,) = workflow["jobs"].values()
    text = str(job["steps"])
    assert set(re.findall(r"\$\{\{ ([\w.]+) \}\}", text)) <= {"github.run_id", *(f"env.{name}" for name in job["env"])}


def test_the_cron_job_is_what_kubernetes_takes():
    document = cron_job()
    jsonschema.validate(document, CRON_JOB)
    wrong = copy.deepcopy(document)
    wrong["spec"]["jobTemplate"]["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, CRON_JOB)
    codes = document["spec"]["jobTemplate"]["spec"]["podFailurePolicy"]["rules"][0]["onExitCodes"]
    assert codes["containerName"] == container()["name"]
    assert set(codes["values"]) == {Exit.USAGE, Exit.REGRESSION, Exit.NOT_JUDGED}, "trying again mends none"
    assert {mount["name"] for mount in container()["volumeMounts"]} == {volume["name"] for volume in pod()["volumes"]}
    assert container()["workingDir"] == container()["volumeMounts"][0]["mountPath"]


def test_the_schema_is_that_of_the_file():
    written = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \|$", HISTORY, re.MULTILINE)
    assert written == [(name, str(kind), about) for name, kind, about in COLUMNS_ABOUT]
