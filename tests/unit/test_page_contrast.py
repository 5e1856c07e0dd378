"""The colours of report.html and the board against what is behind them, by WCAG 2.2: text 4.5:1, lines 3:1."""

import re

import pytest

from taugrid.eval.pages.charts import COLOURS
from taugrid.eval.pages.environment import asset
from taugrid.eval.pages.pivots import SHADES

TEXT, LINES = 4.5, 3.0
LINE_NAMES = ("hat", "red", "green", "grey", *(f"c{number}" for number in range(COLOURS)))
LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#\w+);", report + history + board))
    for report, history, board in zip(
        *(re.findall(r":root \{(.*?)\}", asset(f"{name}.css"), re.S) for name in ("report", "history", "board")),
        strict=True,
    )
)
MODES = {"light": LIGHT, "dark": LIGHT | DARK}
PICKED = tuple(f"p{number}" for number in range(9))
"""The colours of the picked cells, also of their numbers in charts."""
IN_CELLS = re.search(r"\.tg-pivot td \{ color: (#\w+)", asset("tables.css"))[1]


def luminance(colour):
    digits = colour.removeprefix("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    parts = (int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4))
    linear = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_that_of_wcag():
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("mode", MODES)
def test_texts_and_lines_stand_out(mode):
    colours = MODES[mode]
    texts = {
        (name, behind): contrast(colours[name], colours[behind])
        for names, behinds in {("text", "soft"): ("back", "panel", "tint"), ("link", *PICKED): ("back",)}.items()
        for name in names
        for behind in behinds
    }
    assert {pair: ratio for pair, ratio in texts.items() if ratio < TEXT} == {}
    lines = {name: contrast(colours[name], colours["back"]) for name in LINE_NAMES}
    assert {name: ratio for name, ratio in lines.items() if ratio < LINES} == {}


@pytest.mark.parametrize("mode", MODES)
def test_numbers_stand_out_of_their_shades(mode):
    css, text = {"light": (asset("tables.css"), IN_CELLS), "dark": (asset("report.css"), DARK["text"])}[mode]
    shades = dict(re.findall(r"\.tg-shade-(\d) \{ background: (#\w+)", css))
    assert len(shades) == SHADES
    assert {shade: colour for shade, colour in shades.items() if contrast(text, colour) < TEXT} == {}
    ends = [shades["0"], shades["3"], shades[str(SHADES - 1)]]
    assert min(contrast(one, MODES[mode]["back"]) for one in ends) > 1.05, "a shade is seen"
