"""`verify` says what to do about each kind of damage, and doing that mends it."""

import io
import shutil

import pytest
from in_process import small_run
from rich.console import Console

from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.session import Run
from taugrid.orchestrator.verification.next_steps import in_words, next_steps
from taugrid.orchestrator.verification.verify import verify

STAGES = {"run": ("train", "sample", "evaluate", "report"), "report": ("report",)}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with small_run(tmp_path_factory.mktemp("config")) as opened:
        yield opened


def do(opened, command, root):
    progress = Progress(Console(file=io.StringIO()))
    Run(opened.config, opened.plan, RunDir(root), "local", progress).do(STAGES[command])


@pytest.fixture(scope="module")
def finished(opened, tmp_path_factory):
    root = tmp_path_factory.mktemp("finished") / "run"
    do(opened, "run", root)
    return root


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def said(opened, root):
    rundir = RunDir(root)
    damages = verify(opened.config, opened.plan, rundir, lambda count: None)
    return damages, next_steps(damages, opened.plan, rundir)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def delete(path):
    path.unlink()


def spoil(path):
    path.write_text("{")


@pytest.mark.parametrize(
    ("pattern", "harm", "command"),
    [
        ("samples/*/part-000000.parquet", flip, "run"),
        ("samples/*/part-000000.parquet", delete, "run"),
        ("features/*/S*/part-*.parquet", flip, "run"),
        ("scores/*.json", spoil, "run"),
        ("scores/*.json", delete, "run"),
        ("run.json", spoil, "run"),
        ("tables/quality.json", spoil, "report"),
        ("provenance.json", delete, "report"),
    ],
)
def test_the_next_step_mends_the_damage(pattern, harm, command, opened, copy):
    harm(sorted(copy.glob(pattern))[0])
    damages, steps = said(opened, copy)
    assert {step.command for step in steps} == {f"taugrid {command} {copy}"}
    [line] = in_words(steps)
    assert line.startswith(f"`taugrid {command} {copy}` solves {'all' if len(damages) > 1 else 'it'}")
    do(opened, command, copy)
    assert said(opened, copy) == ([], [])


def test_a_damaged_file_that_no_cell_has_is_to_be_removed(opened, copy):
    part = sorted(copy.glob("samples/*/part-000000.parquet"))[0]
    beyond = shutil.copy(part, part.with_name("part-000099.parquet"))
    flip(beyond)
    [damage], [step] = said(opened, copy)
    assert (damage.path, step.command) == (beyond, None)
    assert "remove it" in step.words
    beyond.unlink()
    assert said(opened, copy) == ([], [])


def test_images_that_are_of_no_cell_are_for_the_user_to_decide(opened, copy):
    part = sorted(copy.glob("samples/*/part-000000.parquet"))[0]
    shutil.copytree(part.parent, copy / "samples/S0003-eta0-0123456789")
    [damage], [step] = said(opened, copy)
    assert damage.path == copy / "samples"
    assert (step.command, "remove their folders" in step.words) == (None, True)


def test_pictures_and_reconstructions_are_made_by_their_own_commands(opened, copy):
    for folder in ("reconstructions", "interpolations"):
        (copy / folder / "x").mkdir(parents=True)
        (copy / folder / "x/part-000000.parquet").write_text("none")
    _, steps = said(opened, copy)
    assert {step.command for step in steps} == {f"taugrid reconstruct {copy}", f"taugrid interpolate {copy}"}
