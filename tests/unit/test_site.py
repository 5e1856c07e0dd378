"""`make docs`: a strict build, the structure that GitHub shows, and a search that works from the disk."""

import os
import re
import subprocess
import sys

import pytest
from pages import PAGES, ROOT, anchors

from tools.browser import CHROMIUM, page

pytestmark = pytest.mark.long

pytest.importorskip("material", reason="pip install 'taugrid[docs]'")
SHOWN = [page for page in PAGES if page.is_relative_to(ROOT / "docs") and page.parent.name != "tables"]
BLOCKS = ("li", "pre", "table", "tr", "blockquote", "h2", "h3", "img")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stderr
    return folder


def shown(site, source):
    path = source.relative_to(ROOT / "docs")
    html = (site / path.with_name(path.name.replace("README", "index")).with_suffix(".html")).read_text()
    return re.search(r"<article.*</article>", html, re.DOTALL)[0]


def test_the_site_has_the_lists_tables_and_blocks_that_github_shows(site):
    """Python-Markdown wants an empty line before a list, and four spaces in it; CommonMark doesn't."""
    markdown_it = pytest.importorskip("markdown_it")
    github = markdown_it.MarkdownIt("commonmark", {"html": True}).enable("table")
    for source in SHOWN:
        there, here = github.render(source.read_text()), shown(site, source)
        counts = [{tag: len(re.findall(rf"<{tag}[ >]", html)) for tag in BLOCKS} for html in (there, here)]
        assert counts[0] == counts[1], source
        assert set(anchors(source.read_text())) <= set(re.findall(r'id="([^"]+)"', here)), source


def test_links_out_of_docs_and_to_notebooks_lead_to_pages(site):
    assert 'href="source/workers/samplers/ddim.py.html"' in shown(site, ROOT / "docs/mathematics.md")
    assert "def ddim(" in re.sub("<[^>]+>", "", (site / "source/workers/samplers/ddim.py.html").read_text())
    assert 'href="look-at-a-run.html">Look' in shown(site, ROOT / "docs/python.md")
    assert "data:image/png;base64," in (site / "look-at-a-run.html").read_text()


def test_pages_load_nothing_from_elsewhere(site):
    for file in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?(?:https?:)?//[^>]*>", file.read_text())
        assert [tag for tag in loaded if 'rel="canonical"' not in tag] == [], file


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_the_search_works_from_the_disk(site, tmp_path):
    with page(tmp_path) as tab:
        for name in ("look-at-a-run.html", "index.html"):
            tab.events.clear()
            tab.open(site / name, width=400)
            assert tab.run("document.documentElement.scrollWidth") <= 400, name
        tab.run("document.querySelector('.md-search__input').focus()")
        tab.call("Input.insertText", text="quadratic")
        found = tab.until("document.querySelector('.md-search-result__list').textContent")
        requested = [event["request"]["url"] for event in tab.named("Network.requestWillBeSent")]
    assert "Your own" in found
    assert [url for url in requested if not url.startswith(("file:", "data:"))] == []
