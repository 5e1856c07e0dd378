"""Links and anchors of README and docs/ lead somewhere, and each block of code in them is known and means something."""

import re
import shlex
from contextlib import suppress
from urllib.parse import unquote

import click
import pytest
import yaml
from pages import PAGES, ROOT, anchors, blocks, commands, links, mentioned, name
from test_options import COMMANDS

import taugrid
from taugrid.orchestrator.cli.main import cli

LONGEST_README = 100

EXAMPLES = sorted(line for command in COMMANDS.values() for line in command.examples)
"""Of help texts."""

TESTED_ELSEWHERE = {
    "docs/custom-network.md": "test_wheel.py", "docs/custom-extractor.md": "test_extractor_page.py",
    "docs/custom-sampler.md": "test_doors.py", "docs/samplers.md": "test_teacher_and_student.py",
    "docs/exports.md": "test_exports.py", "docs/python.md": "test_view.py", "docs/board.md": "test_board_served.py",
    "docs/storage.md": "test_readers.py", "docs/nightly.md": "test_nightly_page.py",
    "docs/nightly-history.md": "test_nightly_page.py", "docs/nightly-recipes.md": "test_nightly_page.py",
    "docs/reference/python.md": "test_reference_pages.py",
}  # fmt: skip
"""Pages whose Python, YAML and shell scripts a test of their own runs."""

NOT_OURS = {
    "make", "python", "python3", "export", "ray", "ssh", "cp", "sbatch", "pip", ".venv/bin/pip", "docker", "kubectl",
    "select", "cat",
}  # fmt: skip
"""First words of lines for other programs. `test_cluster_configs.py` reads those for Ray and Kubernetes."""

TREES = ("runs/<name>/", "history/nights/<id>/", "taugrid/ ", "extraction of ", "B (new) - A: ")
"""How the listings begin that show files, or what a benchmark or a command printed."""


def is_broken(link, page):
    path, _, anchor = unquote(link).partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return True
    return bool(anchor) and anchor not in anchors(target.read_text())


def test_every_link_leads_somewhere():
    inside = {page: [link for link in links(page.read_text()) if not re.match(r"https?://", link)] for page in PAGES}
    assert [(name(page), link) for page in PAGES for link in inside[page] if is_broken(link, page)] == []


def test_a_broken_link_would_be_found(tmp_path):
    text = 'See [a](b.md#c-d), ![e](f.png), <img src="g.png">, `[no](link)`.\n\n# C `d`: 1\n\n    [no](link.md)\n'
    assert links(text) == ["b.md#c-d", "f.png", "g.png"]
    assert anchors(text) == ["c-d-1"]
    page = ROOT / "docs/README.md"
    assert [is_broken(link, page) for link in ("none.md", "cluster.md#none", "cluster.md#jobs")] == [True, True, False]


def test_every_page_is_reached_from_readme():
    seen, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        seen.add(page)
        targets = ((page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text()))
        todo += [target for target in targets if target in PAGES and target not in seen]
    assert [name(page) for page in PAGES if page not in seen and page.parent.name != "tables"] == []


def test_readme_is_one_page():
    assert len((ROOT / "README.md").read_text().splitlines()) <= LONGEST_README


def parse(line):
    command, words = cli, shlex.split(re.split(" > |  # ", line)[0])[1:]
    while isinstance(command, click.Group):
        command, (_, *words) = command.commands[words[0]], words
    command.make_context(command.name, words)


def test_a_command_that_a_page_or_a_help_text_shows_exists_with_its_options():
    for line in {line for block in blocks() for line in commands(block)} | set(EXAMPLES):
        parse(line)


def test_a_command_that_a_sentence_names_exists_with_the_options_that_it_has():
    for line in {line for page in PAGES for line in mentioned(page)}:
        with suppress(click.MissingParameter, click.BadOptionUsage):
            parse(line)


def test_a_script_that_a_page_runs_is_there():
    for line in {line for block in blocks() for line in commands(block, "python")}:
        _, path, *others = line.split()
        if path == "-m":
            module = ROOT / others[0].replace(".", "/")
            path = module / "__main__.py" if module.is_dir() else module.with_suffix(".py")
        compile((ROOT / path).read_text(), line, "exec")


def is_config(block):
    """A whole config, or sections of one; a config with code of its own is tested with its page."""
    begins = re.match(r"(name|grid|train|report|model|data|sample|evaluate):", block.text)
    return begins is not None and not re.search("callable: my|, my_|\njobs:", block.text)


CONFIGS = [block for block in blocks() if block.language in ("", "yaml") and is_config(block)]


@pytest.mark.parametrize("block", CONFIGS, ids=lambda block: block.page)
def test_a_config_that_a_page_shows_can_be_planned(block, tmp_path, monkeypatch):
    """What a part leaves out is the demo's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    shown = yaml.safe_load(block.text)
    source = {} if "model.checkpoint" in block.text else {"unet": {}}
    rest = {} if "name" in shown else {"name": "part", "model": source}
    assert taugrid.plan(rest | shown, tmp_path / "run")["cells"]


def test_pages_show_configs():
    pages = {"README.md", "docs/grid.md", "docs/models.md", "docs/data.md", "docs/ablations.md"}
    assert pages <= {block.page for block in CONFIGS}


def test_every_block_is_of_a_kind_that_is_tested():
    unknown = []
    for block in blocks():
        lines = [line for line in re.sub(r" *\\\n *", " ", block.text).splitlines() if line.strip()]
        programs = {line.split()[0] for line in lines}
        is_known = (block in CONFIGS or block.page in TESTED_ELSEWHERE) or (
            block.text.startswith(TREES) or programs <= {"taugrid", *NOT_OURS}
        )
        unknown += [] if is_known else [(block.page, lines[0])]
    assert unknown == []
