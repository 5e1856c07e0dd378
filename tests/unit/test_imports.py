"""What a command, or `import taugrid`, loads: nothing heavy, unless it computes."""

import json
import subprocess
import sys
import textwrap

import pytest

from taugrid.config.load import load
from taugrid.orchestrator.plan.grid import plan
from taugrid.run_id import claim
from taugrid.storage import LOCAL

HEAVY = ("torch", "torchvision", "ray", "diffusers", "torch_fidelity", "matplotlib")
SLOW = ("pandas", "scipy", "pyarrow.compute")
"""A third of what `plan` imported, which needs none of them: tables and scores do."""
TABLES = ("pydantic", "numpy", "pandas", "pyarrow", "matplotlib")

LOOKING = [("plan", "digits"), ("config", "show", "digits"), ("config", "schema"), ("config", "validate", "digits")]
ASKING = [("verify", "DIR"), ("report", "DIR"), ("export", "DIR", "A", "--to", "DIR/png"), ("compare", "DIR", "A", "B")]
"""Commands about a run in DIR that has not begun, of whose cells A and B are two."""

RUN_ALL = """
import json, sys
steps = json.loads(sys.argv[1])
for name, code in steps.items():
    exec(code, {})
    print(json.dumps([name, sorted(sys.modules)]), file=sys.stderr)
"""


def modules_after_each(steps):
    """Name -> the modules that a process has loaded after running this piece of code and those before it."""
    steps = {name: textwrap.dedent(code) for name, code in steps.items()}
    process = [sys.executable, "-c", RUN_ALL, json.dumps(steps)]
    done = subprocess.run(process, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]
    return {name: set(modules) for name, modules in found}


def command(*arguments):
    return f"""
        import sys
        from taugrid.orchestrator.cli.main import cli
        sys.argv = ["taugrid", *{arguments!r}]
        cli.main({list(arguments)!r}, standalone_mode=False)
    """


def refused(*arguments):
    """The command is refused or says what is missing, after all that it imports to find out."""
    lines = textwrap.indent(textwrap.dedent(command(*arguments)), "    ")
    return (
        f"from taugrid.errors import UserError\ntry:{lines}\nexcept (UserError, SystemExit) as end:\n"
        "    assert end.args[0]\nelse:\n    raise AssertionError('it did not end')"
    )


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """After each thing that loads little: one process does them all, in the order of what they may load."""
    folder, config = tmp_path_factory.mktemp("run"), load("digits")
    claim(folder, LOCAL)
    (folder / "config.json").write_text(config.model_dump_json())
    first, second, *_ = plan(config).cells
    places = {"DIR": str(folder), "DIR/png": str(folder / "png"), "A": first.name, "B": second.name}
    return modules_after_each(
        {
            "import": "import taugrid; assert taugrid.open and taugrid.sample",
            "help": "from taugrid.orchestrator.cli.main import cli\ncli.main(['--help'], standalone_mode=False)",
            **{" ".join(arguments): command(*arguments) for arguments in LOOKING},
            "status": command("status", str(folder)),
            **{arguments[0]: refused(*(places.get(word, word) for word in arguments)) for arguments in ASKING},
            "open": f"import taugrid; assert taugrid.open({str(folder)!r})._repr_html_()",
        }
    )


@pytest.mark.long
def test_the_api_is_light_until_it_is_used(loaded):
    assert "taugrid.api" in loaded["import"]
    assert not loaded["import"] & {*HEAVY, *TABLES, "jinja2"}


def test_help_imports_next_to_nothing(loaded):
    """`--help` answers at once because of this; a clock in a test would measure the machine."""
    assert "click" in loaded["help"]
    assert not loaded["help"] & {*HEAVY, *TABLES, "rich", "yaml"}


@pytest.mark.parametrize("name", [*map(" ".join, LOOKING), "status"])
def test_looking_imports_nothing_heavy(name, loaded):
    assert "taugrid.config" in loaded[name]
    assert not loaded[name] & {*HEAVY, *SLOW}


@pytest.mark.parametrize("name", [*(arguments[0] for arguments in ASKING), "open"])
def test_asking_a_run_that_has_not_begun_imports_nothing_heavy(name, loaded):
    assert "taugrid.orchestrator.view.inspection" in loaded[name]
    assert not loaded[name] & set(HEAVY)


@pytest.mark.long
def test_a_worker_of_oracles_and_custom_networks_imports_no_diffusers():
    code = "import taugrid.workers.network.load, taugrid.workers.sample, taugrid.workers.actor"
    modules = modules_after_each({"worker": code})["worker"]
    assert "torch" in modules
    assert "diffusers" not in modules
