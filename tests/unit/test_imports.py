import subprocess
import sys
import textwrap

import pytest

HEAVY = ("torch", "torchvision", "ray", "diffusers", "torch_fidelity", "matplotlib")


def modules_after(code):
    script = textwrap.dedent(code) + "\nimport sys; print('\\n'.join(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def command(*arguments):
    return f"""
        import sys
        from taugrid.orchestrator.cli.main import cli
        sys.argv = ["taugrid", *{arguments!r}]
        cli.main({list(arguments)!r}, standalone_mode=False)
    """


@pytest.mark.parametrize(
    "arguments",
    [("plan", "digits"), ("config", "show", "digits"), ("config", "schema"), ("config", "validate", "digits")],
    ids=" ".join,
)
def test_looking_imports_nothing_heavy(arguments):
    modules = modules_after(command(*arguments))
    assert "taugrid.config" in modules
    assert not modules & set(HEAVY)


def test_status_imports_nothing_heavy(tmp_path):
    from taugrid.config.load import load

    (tmp_path / "config.json").write_text(load("digits").model_dump_json())
    modules = modules_after(command("status", str(tmp_path)))
    assert "taugrid.orchestrator.inspection" in modules
    assert not modules & set(HEAVY)


@pytest.mark.parametrize(
    "arguments",
    [("verify", "DIR"), ("report", "DIR"), ("export", "DIR", "A", "--to", "DIR/png"), ("compare", "DIR", "A", "B")],
    ids=lambda arguments: arguments[0],
)
def test_asking_a_run_that_has_not_begun_imports_nothing_heavy(arguments, tmp_path):
    """Each command is refused or says what is missing, after all that it imports to find out."""
    from taugrid.config.load import load
    from taugrid.orchestrator.plan.grid import plan

    config = load("digits")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    first, second, *_ = plan(config).cells
    places = {"DIR": str(tmp_path), "DIR/png": str(tmp_path / "png"), "A": first.name, "B": second.name}
    lines = textwrap.indent(textwrap.dedent(command(*(places.get(word, word) for word in arguments))), "    ")
    modules = modules_after(
        f"from taugrid.errors import UserError\ntry:{lines}\nexcept (UserError, SystemExit) as end:\n"
        "    assert end.args[0]\nelse:\n    raise AssertionError('it did not end')"
    )
    assert "taugrid.orchestrator.opened" in modules
    assert not modules & set(HEAVY)


def test_the_api_is_light_until_it_is_used():
    modules = modules_after("import taugrid; assert taugrid.open and taugrid.sample")
    assert "taugrid.api" in modules
    assert not modules & {*HEAVY, "pydantic", "numpy", "pandas", "pyarrow", "matplotlib", "jinja2"}


def test_looking_at_a_run_imports_neither_torch_nor_ray(tmp_path):
    from taugrid.config.load import load

    (tmp_path / "config.json").write_text(load("digits").model_dump_json())
    modules = modules_after(f"import taugrid; assert taugrid.open({str(tmp_path)!r})._repr_html_()")
    assert "taugrid.orchestrator.view.run" in modules
    assert not modules & set(HEAVY)


def test_help_imports_next_to_nothing():
    """`--help` answers at once because of this; a clock in a test would measure the machine."""
    modules = modules_after(
        "from taugrid.orchestrator.cli.main import cli\ncli.main(['--help'], standalone_mode=False)"
    )
    assert "click" in modules
    assert not modules & {*HEAVY, "pydantic", "numpy", "pandas", "pyarrow", "rich", "yaml"}


def test_the_driver_needs_no_torch_to_dispatch():
    modules = modules_after(
        "import taugrid.orchestrator.session, taugrid.orchestrator.dispatch.loop, taugrid.workers.actor\n"
        "from taugrid.orchestrator.work import work_kinds\n"
        "assert len(work_kinds()) == 6"
    )
    assert "ray" in modules
    assert not modules & {"torch", "diffusers", "torch_fidelity"}


def test_a_worker_of_oracles_and_custom_networks_imports_no_diffusers():
    """It takes seconds in each worker."""
    modules = modules_after("import taugrid.workers.network.load, taugrid.workers.sample, taugrid.workers.actor")
    assert "torch" in modules
    assert "diffusers" not in modules
