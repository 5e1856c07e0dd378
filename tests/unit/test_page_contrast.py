"""The colours of report.html and the board against what is behind them, by WCAG 2.2: text 4.5:1, lines 3:1."""

import re

import pytest

from taugrid.eval.pages.charts import COLOURS
from taugrid.eval.pages.environment import asset

LIGHT, DARK = (
    dict(re.findall(r"--([\w-]+): (#\w+);", "".join(blocks)))
    for blocks in zip(
        *(re.findall(r":root \{(.*?)\}", asset(f"{name}.css"), re.S) for name in ("report", "history", "board")),
        strict=True,
    )
)
LINES = ("hat", "red", "green", "grey", *(f"c{number}" for number in range(COLOURS)))
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


@pytest.mark.parametrize(("colours", "css"), [(LIGHT, "tables"), (LIGHT | DARK, "report")], ids=["light", "dark"])
def test_texts_lines_and_numbers_stand_out(colours, css):
    texts = [(name, behind) for name in ("text", "soft") for behind in ("back", "panel", "tint")]
    texts += [(name, "back") for name in ("link", *(f"p{number}" for number in range(9)))]
    assert [pair for pair in texts if contrast(*map(colours.get, pair)) < 4.5] == []
    assert [name for name in LINES if contrast(colours[name], colours["back"]) < 3.0] == []
    shades = re.findall(r"\.tg-shade-\d \{ background: (#\w+)", asset(f"{css}.css"))
    assert len(shades) > 2
    assert [shade for shade in shades if contrast(IN_CELLS if css == "tables" else colours["text"], shade) < 4.5] == []
