"""A run's figures within a page: each an SVG in the page's colours, buttons for its lines, and a table of its numbers.

The page's policy allows no `style` attributes, so these become attributes of their own. Colours become the variables of
report.css, which differ between light and dark.
"""

import io
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.artist import Artist
from matplotlib.container import Container
from matplotlib.figure import Figure
from matplotlib.text import Text

from taugrid.eval.figures.ablation.cost import CAPTION, costs_figure
from taugrid.eval.figures.drawing import STYLE, key_of, number_ids, plain_style
from taugrid.eval.figures.loss import losses_figure, running_mean
from taugrid.eval.figures.over_steps import LABELS, quality_figure
from taugrid.eval.pages.answer import Measured
from taugrid.eval.tables.ablation.cost import Cost, costs_table
from taugrid.eval.tables.labels import SIGMA_HAT, spelled
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.quality import QualityTable
from taugrid.registry.metrics import MetricColumn

MAX_POINTS = 20
"""Rows of a model's losses. The log of a training may have thousands."""
MAX_MODELS = 12
ABOUT_COSTS = (
    f"{CAPTION} Measured {{title}}s decide, so near ties are not told apart. Seconds depend on the machines and on "
    "what else they did."
)
COLOURS = 8
"""Colours of lines in report.css, from dark to light."""
SPECIAL = "line-hat"
"""The line that has a colour apart from that scale, of sigma_hat."""
NEUTRAL = {"#ffffff": "var(--back)", STYLE["grid.color"]: "var(--rule)"}
"""Colours that mean the same wherever they are."""
PIXELS = 1.5
"""Pixels for a point of the figure, unless the page is narrower."""
SETTINGS = {"svg.fonttype": "none", "path.simplify_threshold": 0.4}
"""Texts stay texts, and points less than this many pixels off their line are left out."""
MATHEMATICS = {r"$\eta$": "η", r"$\hat{\sigma}$": SIGMA_HAT, "$S$": "S", r"\$": "$"}
"""TeX in figures -> text in a page."""


class Button(NamedTuple):
    """The name of a line, which hides and shows it."""

    name: str
    key: str
    colour: str
    """A class of report.css."""
    marker: str
    """The outline of its markers; empty if it has none."""


class Chart(NamedTuple):
    svg: Markup
    across: int
    """Panels side by side."""
    legend: list[Button]
    alt_text: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def quality_chart(
    quality: QualityTable, cells: Sequence[Measured], published: Sequence[Mapping[str, Any]], metric: MetricColumn = FID
) -> Chart:
    """A metric against `report.x`; numbers in `published`, rows of published.csv, are dotted where nothing differs."""
    theirs = {row["cell"]: float(row["published"]) for row in published if not row["differs"]}
    frame, x = quality.means.frame, quality.layout.x
    figure = quality_figure(frame, quality.used_protocols, theirs, x, metric, quality.floors)
    column = cells[0].table.column_key if cells else "S"
    rows = [(cell.line, str(cell.at), f"{cell.entry.shown} {cell.entry.mark}".rstrip()) for cell in cells]
    rows += [
        (f"{cell.line}, published", str(cell.at), f"{theirs[cell.entry.cell]:g}")
        for cell in cells
        if cell.entry.cell in theirs
    ]
    along = LABELS[x].replace("$", "")
    name = "steps" if metric == FID else f"steps-{metric.name}"
    return chart(figure, name, f"{metric.title} against {along}", ("row", column, metric.title), rows)


def cost_chart(costs: Sequence[Cost]) -> Chart:
    alt_text = f"{costs[0].metric.title} against network evaluations and device seconds"
    return chart(costs_figure(costs), "cost", alt_text, *costs_table(costs))


def loss_chart(logs: Mapping[str, pd.DataFrame]) -> Chart:
    """The losses of the first `MAX_MODELS` models, from the columns `step` and `loss` of their logs, by name."""
    shown = dict(list(logs.items())[:MAX_MODELS])
    rows = [row for name, log in shown.items() for row in _losses(name, log)]
    alt_text = "training loss against the step"
    return chart(losses_figure(shown), "loss", alt_text, ("model", "step", "loss (running mean)"), rows)


def _losses(name: str, log: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The running mean at steps that are equally far apart on a logarithmic scale."""
    step, loss = log["step"].to_numpy(), log["loss"].to_numpy()
    mean = running_mean(step, loss)
    targets = np.geomspace(max(1, step[0]), step[-1], MAX_POINTS) if len(step) else step
    places = sorted({min(int(np.searchsorted(step, target)), len(step) - 1) for target in targets})
    return [(name, f"{step[i]:,}", f"{mean[i]:.4g}") for i in places]


def chart(figure: Figure, name: str, alt_text: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Chart:
    """A figure, which is not drawn again, as part of a page, with a table of its numbers.

    Its legend and the texts below its panels are left to the page. `name` begins all ids, and is unique within the
    page. `alt_text` is for screen readers.
    """
    lines = _lines(figure)
    across = _without_surroundings(figure)
    root = _svg(figure)
    ids = {element.get("id"): element for element in root.iter()}
    colours = _colours(list(lines))
    legend = [Button(label, key, colours[key], _marker(ids, artist)) for key, (label, artist) in lines.items()]
    _adapt(root, name, colours)
    width, height = (float(number) for number in root.get("viewBox", "").split()[2:])
    root.attrib |= {"role": "img", "aria-label": f"{alt_text}; the numbers are in the table below"}
    root.attrib |= {"width": f"{PIXELS * width:.0f}", "height": f"{PIXELS * height:.0f}"}
    return Chart(Markup(ElementTree.tostring(root, "unicode")), across, legend, alt_text, columns, rows)


def _lines(figure: Figure) -> dict[str, tuple[str, Artist]]:
    """Key of each line -> its name and one of the artists that draw its points, in the order of the keys."""
    found: dict[str, tuple[str, Artist]] = {}
    for panel in figure.axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            artist = handle.get_children()[0] if isinstance(handle, Container) else handle
            on_one_line = label.replace("-\n", "-").replace("\n", " ")
            found.setdefault(key_of(artist), (_plain(on_one_line), artist))
    return dict(sorted(found.items(), key=lambda item: (item[0] == SPECIAL, len(item[0]), item[0])))


def _colours(keys: Sequence[str]) -> dict[str, str]:
    """The class of each line's colour: of its sampler if its key names one ("line-3-0"), else from the scale."""
    scale = [key for key in keys if key != SPECIAL]
    places = {key: place * (COLOURS - 1) // max(1, len(scale) - 1) for place, key in enumerate(scale)}
    samplers = {key: f"sampler-{key.split('-')[2]}" for key in keys if key.count("-") == 2}
    return {key: f"line-{places[key]}" if key in places else key for key in keys} | samplers


def _without_surroundings(figure: Figure) -> int:
    """Remove all but the panels, fit the figure to them, and return the number of panels side by side."""
    for artist in (*figure.legends, *figure.texts):
        artist.remove()
    for text in figure.findobj(Text):
        written = text.get_text()
        text.set_text(_plain(written) if text.get_parse_math() else spelled(written))
    place = figure.axes[0].get_subplotspec()
    assert place is not None, "panels are in a grid"
    down, across, _, _ = place.get_geometry()
    figure.set_size_inches(0.4 + 3.6 * across, 0.3 + 3.1 * down)
    return across


def _plain(text: str) -> str:
    for written, shown in MATHEMATICS.items():
        text = text.replace(written, shown)
    if found := re.fullmatch(r"eta([\d.]+)|sigma_hat", text):  # lines of a history
        return f"η = {float(found[1])}" if found[1] else SIGMA_HAT
    return spelled(text)


def _svg(figure: Figure) -> ElementTree.Element:
    """The figure without its background, and without what an SVG has beside the drawing."""
    number_ids(figure)
    with plain_style(), rc_context(SETTINGS):
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True)
    root = ElementTree.fromstring(file.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {name.rpartition("}")[2]: value for name, value in element.attrib.items()}
    for part in root.findall("metadata") + root.findall("defs[style]"):
        root.remove(part)
    return root


def _marker(ids: dict[str | None, ElementTree.Element], artist: Artist) -> str:
    use = ids[artist.get_gid()].find(".//use")
    return "" if use is None else _rounded(ids[use.get("href", "")[1:]].get("d", ""))


def _adapt(element: ElementTree.Element, name: str, colours: dict[str, str], own: str = "var(--soft)") -> None:
    """Make an element and all in it a part of a page: ids and colours are the page's, and it has no styles.

    A group of a line or of a light gets its class; `own` is the colour of all that is not neutral.
    """
    key = element.get("id", "").partition(".")[0]
    classes = {"class": colours[key], "data-line": key} if key in colours else {}
    if key.startswith("light-"):
        classes = {"class": key.replace("-", " ")}
    own = "var(--colour)" if classes else own
    element.attrib = dict(_attributes(element, name, own)) | classes
    if element.tag not in ("text", "tspan"):
        element.text = None
    element.tail = None
    for part in element:
        _adapt(part, name, colours, own)


def _attributes(element: ElementTree.Element, name: str, own: str) -> Iterator[tuple[str, str]]:
    """The attributes that an element keeps, with `own` as its colour."""
    for key, value in element.items():
        if key == "style":
            for part in value.split(";"):
                what, _, text = part.partition(": ")
                if what.strip() in ("fill", "stroke"):
                    yield what.strip(), text if text == "none" else NEUTRAL.get(text, own)
                elif what.strip() != "font-family":
                    yield what.strip(), text
        elif key == "id":
            if element.tag in ("path", "clipPath"):
                yield key, f"{name}-{value}"
        elif key == "href":
            yield key, f"#{name}-{value[1:]}" if value.startswith("#") else value
        elif key == "clip-path":
            yield key, value.replace("#", f"#{name}-")
        elif key not in ("target", "version"):
            yield key, _rounded(value) if key in ("d", "x", "y", "transform") else value
    if element.tag == "a":
        yield "tabindex", "-1"  # the page has the same links in its table


def _rounded(numbers: str) -> str:
    """Numbers in a text to two digits: a hundredth of a point is invisible."""
    short = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), numbers)
    return re.sub(r"\s+", " ", short).strip()
