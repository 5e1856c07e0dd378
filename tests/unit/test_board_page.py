"""The page of the board in a browser: what it shows of a document, and that nobody's text becomes code."""

import browser
import pytest
from boards import board

from taugrid.eval.pages.board import board_html

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium")


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """One browser for all tests of this file."""
    with browser.page(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


def texts(tab, selector):
    return tab.run(f"[...document.querySelectorAll('{selector}')].map(e => e.textContent)")


def test_a_page_shows_all_cells_without_an_error(tab, tmp_path):
    path = tmp_path / "index.html"
    path.write_text(board_html(board(3), live=False))
    tab.open(path)
    assert texts(tab, "#count") == ["60 cells of 3 runs; tick two to nine cells to compare them"]
    assert not tab.named("Runtime.exceptionThrown")
    assert not tab.named("Log.entryAdded")
