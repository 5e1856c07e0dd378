"""Tables, figures and effects of grids over samplers: what S costs, what a sampler ignores, and what is compared."""

import shutil
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from in_process import CONFIG, drive, small_run
from matplotlib.text import Text
from nights import compared
from nights import taugrid as command
from PIL import Image
from snapshots import recorded
from test_differences import N, protocol, spread
from test_differences import cell as row_of

import taugrid
from taugrid.config import Config, validate
from taugrid.eval.figures.ablation import costs_figure, effects_figure, per_key_figures
from taugrid.eval.figures.drawing import SAMPLER_COLOURS, row_styles
from taugrid.eval.figures.lines import quality_figure
from taugrid.eval.figures.pictures import FONT_SIZE, MARGIN
from taugrid.eval.tables.cost import costs
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.effects import Effects, effects, effects_markdown, short_key_names
from taugrid.eval.tables.long_form import FID, long_form
from taugrid.eval.tables.quality import QualityTable
from taugrid.grids import EVALUATIONS, Layout, chosen
from taugrid.orchestrator.opened import open_existing
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.progress import Progress
from taugrid.orchestrator.report.requested import evaluations, layout
from taugrid.orchestrator.report.sample_figures import first_images
from taugrid.orchestrator.report.write import about_short_cells
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.selection import find_cell
from taugrid.orchestrator.session import Session
from taugrid.orchestrator.work.ode import left_out, ode_cells
from taugrid.storage import LOCAL

pytestmark = pytest.mark.usefixtures("one_thread", "sketched")

FIDS = {("ddim", 0.0): 30.0, ("ddim", 1.0): 40.0, ("dpm++2m", None): 20.0, ("heun", None): 16.0}


def cell(sampler, steps, eta=None, fid=None, evaluations=None, **others):
    count = evaluations or (2 * steps - 1 if sampler == "heun" else steps)
    fid = FIDS.get((sampler, eta), 10.0) - steps if fid is None else fid
    name = " ".join(map(str, (sampler, steps, eta, *others.values())))
    rest = {"network_evaluations": count, "clip": None, "spacing": None, "protocol": "p", "seconds": count / 10}
    return row_of(name, steps, eta, fid, sampler=sampler) | rest | others


def product():
    """Heun at the same S as the others, where it takes 2 S - 1 evaluations. dpm++2m alone ignores spacing."""
    rows = [cell("ddim", s, eta, spacing="linear", clip="none") for eta in (0.0, 1.0) for s in (5, 10)]
    rows += [cell("dpm++2m", s) for s in (5, 10)]
    return rows + [cell("heun", s, spacing="linear", clip="none") for s in (5, 10)]


def aligned():
    """Heun at 5 and 9 evaluations, where ddim has cells too."""
    rows = [cell("ddim", s, 0.0, spacing="linear") for s in (5, 9)]
    return rows + [cell("heun", s, spacing="linear") for s in (3, 5)]


def known(rows, influences=None):
    phi = {row["cell"]: spread(0.5 + 0.1 * place) for place, row in enumerate(rows)}
    return Evidence(phi if influences is None else influences, dict.fromkeys(phi, 7), {"p": protocol()})


def table(rows, places=Layout()):  # noqa: B008  # a tuple
    return QualityTable(rows, known(rows), layout=places)


def markdown_rows(text):
    """The first table's rows: their labels, up to the first number or dash."""
    lines = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return [lines[0], *lines[2:]]


def test_rows_name_samplers_and_leave_empty_what_they_ignore():
    head, *rows = markdown_rows(table(product()).markdown)
    assert head == ["sampler", "η \\ S", "5", "10"]
    assert [row[:2] for row in rows] == [["ddim", "0.0"], ["ddim", "1.0"], ["dpm++2m", ""], ["heun", ""]]
    several = [*product(), *(cell("ddim", s, 0.0, 8.0, spacing="quadratic") for s in (5, 10))]
    head, *rows = markdown_rows(table(several).markdown)
    assert head[:3] == ["sampler", "spacing", "η \\ S"]
    assert ["dpm++2m", "", ""] in [row[:3] for row in rows]
    assert ["heun", "linear", ""] in [row[:3] for row in rows]
    no_eta = [row for row in product() if row["sampler"] != "ddim"]
    assert [row[:1] for row in markdown_rows(table(no_eta).markdown)] == [["sampler \\ S"], ["dpm++2m"], ["heun"]]
    [alone] = markdown_rows(table([cell("heun", 5), cell("heun", 10)]).markdown)[1:]
    assert alone[0] == "heun"


def test_options_of_a_sampler_are_a_column_that_reads():
    name = "diffusers:DPMSolverMultistepScheduler"
    given = [{}, {"solver_order": 3, "final_sigmas_type": "zero"}]
    rows = [cell(name, 5, sampler_options=options, fid=9 + len(options), cell=str(len(options))) for options in given]
    rows.append(cell("ddim", 5, 0.0, spacing="linear", sampler_options={}))
    head, *shown = markdown_rows(table(rows).markdown)
    assert head[:3] == ["sampler", "sampler_options", "η \\ S"]
    assert [row[:2] for row in shown] == [[name, ""], [name, "solver_order=3 final_sigmas_type=zero"], ["ddim", ""]]
    lines = {text.get_text().replace("\n", " ") for text in quality_figure(long_form(rows)).legends[0].get_texts()}
    short = "DPMSolverMultistep"
    assert lines == {f"{short}, solver_order=3 final_sigmas_type=zero", short, "ddim, η = 0.0"}
    found = effects(rows, known(rows), {"sampler": "ddim"})
    assert {effect.key for effect in found} == {"sampler & sampler_options"}
    assert short_key_names(found) == {"sampler & sampler_options": "sampler"}
    assert {(effect.base, effect.effect) for effect in found} == {("ddim", -16.0), ("ddim", -14.0)}


def test_columns_of_evaluations_put_cells_of_equal_cost_in_one_column():
    head, *rows = markdown_rows(table(aligned(), Layout(columns=EVALUATIONS)).markdown)
    assert head == ["sampler", "η \\ evaluations", "5", "9"]
    assert [row[0] for row in rows] == ["ddim", "heun"]
    assert "–" not in str(rows)
    [pivot] = table(aligned(), Layout(columns=EVALUATIONS)).section(FID).tables
    assert [[entry.best for entry in row] for row in pivot.entries] == [[False, False], [True, True]]
    [pivot] = table(product(), Layout(columns=EVALUATIONS)).section(FID).tables
    assert pivot.columns == [5, 9, 10, 19]
    best = [[entry.number for entry in row if entry.best] for row in pivot.entries]
    assert best == [[], [], [15.0, 10.0], []], "heun's 11 with 9 evaluations is no better than dpm++2m's 15 with 5"


def test_a_column_that_one_sampler_has_alone_has_no_best():
    rows = [cell("heun", 5, spacing=name, fid=fid) for name, fid in (("linear", 9.0), ("quadratic", 8.0))]
    rows += [cell("ddim", 5, 0.0, spacing="linear"), cell("ddim", 9, 0.0, spacing="linear")]
    [pivot] = table(rows, Layout(columns=EVALUATIONS)).section(FID).tables
    assert pivot.columns == [5, 9]
    assert [entry.value for row in pivot.entries for entry in row if entry.best] == ["8.00"]
    assert len(list(pivot.contests())) == 1
    without = [row for row in rows if row["cell"] != "ddim 9 0.0 linear"]
    assert not table(without, Layout(columns=EVALUATIONS)).section(FID).tables[0].has_best


PRODUCT = {"sampler": ["ddim", "heun"], "steps": [5, 10]}
MEETING = [{"sampler": ["ddim"], "steps": [5, 9]}, {"sampler": ["heun"], "steps": [3, 5]}]
COLLIDING = [{"sampler": ["ddim"], "spacing": ["ermongroup-uniform"], "steps": [501, 600]},
             {"sampler": ["dpm++2m"], "steps": [1000]}]  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "report", "columns", "x"),
    [
        ({"steps": [5, 10], "eta": [0.0, 1.0]}, {}, "steps", "steps"),
        (PRODUCT, {}, EVALUATIONS, "evaluations"),
        (PRODUCT, {"x": "seconds"}, EVALUATIONS, "seconds"),
        ({"sampler": ["heun"], "steps": [5, 10]}, {}, "steps", "evaluations"),
        (MEETING, {}, EVALUATIONS, "evaluations"),
        (MEETING, {"x": "steps"}, "steps", "steps"),
        (MEETING, {"columns": "sampler"}, "sampler", "evaluations"),
        (COLLIDING, {}, EVALUATIONS, "evaluations"),
        ({"sampler": ["ddim", "dpm++2m"], "steps": [5, 10], "guidance": [1, 2]}, {}, "steps", "evaluations"),
        ({"spacing": ["linear", "ermongroup-uniform"], "steps": [30]}, {}, EVALUATIONS, "evaluations"),
    ],
)
def test_columns_are_evaluations_where_samplers_differ_in_them(grid, report, columns, x):
    found, config = planned(grid, report)
    assert layout(config, found)[:3] == ((), columns, x)


def planned(grid, report=MappingProxyType({})):
    oracle = "classes" if "guidance" in grid else "gaussian"
    values = {"name": "x", "model": {"oracle": oracle}, "data": {"name": oracle, "shape": [1, 4, 4]}}
    values |= {"sample": {"seed": 0}, "grid": grid, "report": dict(report)}
    values["sample"] |= {"labels": "balanced"} if oracle == "classes" else {}
    config = validate(Config, values, "test")
    return plan(config), config


@pytest.mark.parametrize(
    ("x", "of_heun", "of_ddim"),
    [("steps", [5, 10], [5, 10]), ("evaluations", [9, 19], [5, 10]), ("seconds", [2.25, 4.75], [1.25, 2.5])],
)
def test_the_figure_is_over_steps_evaluations_or_seconds_with_a_line_for_each_sampler(x, of_heun, of_ddim):
    figure = quality_figure(long_form(product()), x=x)
    figure.draw_without_rendering()
    [panel] = figure.axes
    recorded(panel.get_xlabel())
    at = {bar.get_label(): bar.lines[0].get_xdata(orig=False) for bar in panel.containers}
    assert list(at) == ["ddim, η = 0.0", "ddim, η = 1.0", "dpm++2m", "heun"]
    np.testing.assert_allclose(at["heun"], of_heun, rtol=0.03)
    np.testing.assert_allclose(at["ddim, η = 0.0"], of_ddim, rtol=0.03)
    looks = [(bar.lines[0].get_color(), bar.lines[0].get_linestyle()) for bar in panel.containers]
    black, orange, blue, *_ = SAMPLER_COLOURS
    assert looks == [(black, "-"), (black, "--"), (orange, "-"), (blue, "-")]


def test_a_single_row_of_sigma_hat_has_the_colour_of_its_sampler():
    names = {("ddim", "0.0"): "first", ("ddim", "σ̂"): "second", ("heun", ""): "third"}
    black, orange, *_ = SAMPLER_COLOURS
    found = {look.name: look.colour for look in row_styles(names, ["sampler", "eta"]).values()}
    assert found == {"first": black, "second": black, "third": orange}


def test_long_names_of_samplers_stay_within_the_figures():
    name = "diffusers:DPMSolverMultistepScheduler"
    options = {"timestep_spacing": "linspace", "final_sigmas_type": "zero"}
    rows = [cell("ddim", s, eta / 10, spacing="linear", sampler_options={}) for s in (5, 10) for eta in range(11)]
    rows += [cell(f"{name}{n}", s, sampler_options=options, cell=f"{n} {s}") for n in range(6) for s in (5, 10)]
    found = effects(rows, known(rows))
    for figure in (costs_figure(costs(table(rows), {})), effects_figure(found), quality_figure(long_form(rows))):
        figure.draw_without_rendering()
        right = figure.bbox.x1
        names = {panel.get_title(loc) for panel in figure.axes for loc in ("center", "left")}
        titles = [text for text in figure.findobj(Text) if text.get_text() in names - {""}]
        assert all(title.get_window_extent().x1 <= right for title in titles)
        below = [text.get_window_extent().y1 for text in figure.texts if text.get_text() == figure.get_supxlabel()]
        for box in (legend.get_window_extent() for legend in figure.legends):
            assert box.y0 >= max([0, *below])
            assert box.x1 <= right


def test_panels_of_a_key_say_a_sampler_once():
    rows = [row | {"spacing": name, "cell": f"{row['cell']} {name}"}
            for row in product() for name in ("linear", "quadratic")]  # fmt: skip
    figures = dict(per_key_figures(table(rows), effects(rows, known(rows))))
    titles = [panel.get_title() for panel in figures["by-sampler"].axes]
    assert titles == ["sampler=ddim", "sampler=dpm++2m", "sampler=heun"]
    names = {key: [text.get_text() for text in figures[key].legends[0].get_texts()] for key in figures}
    assert len(names["by-sampler"]) == 6
    assert not [name for name in names["by-sampler"] if "ddim" in name]
    assert names["by-spacing"] == ["ddim, η = 0.0", "ddim, η = 1.0", "dpm++2m", "heun"]
    spaced = [cell("ddim", 5, 0.0, spacing=name) for name in ("linear", "quadratic")]
    panels = quality_figure(long_form([*spaced, cell("diffusers:X", 5)])).axes
    assert [(panel.get_title(), len(panel.containers)) for panel in panels] == [
        ("spacing=linear", 2), ("spacing=quadratic", 2),
    ]  # fmt: skip


def test_samplers_are_compared_with_the_base_at_equal_evaluations_where_they_meet():
    rows = aligned()
    found = effects(rows, known(rows))
    assert [(e.scope, e.settings, e.base, e.value, e.effect, e.pairs) for e in found] == [
        ("all", "equal evaluations", "ddim", "heun", ((13 - 25) + (11 - 21)) / 2, 2),
        ("S", "evaluations=5", "ddim", "heun", 13.0 - 25.0, 1),
        ("S", "evaluations=9", "ddim", "heun", 11.0 - 21.0, 1),
    ]
    phi = known(rows).influences
    difference = phi["heun 3 None linear"] - phi["ddim 5 0.0 linear"]
    assert found[1].se_sampling == pytest.approx(difference.std(ddof=1) / np.sqrt(N)), "paired by the shared noise"
    text = effects_markdown(Effects({FID: found}))
    recorded(text, "equal evaluations")


def test_or_at_equal_s_which_the_table_says_and_what_a_sampler_ignores_has_the_bases_value():
    rows = product()
    found = [e for e in effects(rows, known(rows)) if e.scope == "all"]
    heun, multistep = (next(e for e in found if e.value == name) for name in ("heun", "dpm++2m"))
    assert (heun.effect, multistep.effect) == (16.0 - 30.0, 20.0 - 30.0), "eta 0 and not 1"
    assert "and 1.9 times" in heun.settings
    recorded(heun.settings)
    recorded(multistep.settings)
    assert {e.pairs for e in found} == {2}
    of_1 = effects(rows, known(rows), {"eta": 1.0})
    assert [e.effect for e in of_1 if (e.scope, e.key, e.value) == ("all", "sampler", "heun")] == [16.0 - 40.0]
    assert {(e.base, e.value) for e in of_1 if e.key == "eta"} == {("1.0", "0.0")}, "samplers without eta have none"


def test_a_base_that_ignores_a_key_stands_beside_every_value_of_it():
    rows = product()
    found = [e for e in effects(rows, known(rows), {"sampler": "dpm++2m"}) if e.value == "ddim"]
    assert [(e.scope, e.settings, e.effect, e.pairs) for e in found if e.scope != "S"] == [
        ("all", "", 15.0, 4),
        *(("cell", f"S={s} eta={eta}", effect, 1) for eta, effect in (("0.0", 10.0), ("1.0", 20.0)) for s in (5, 10)),
    ]


def test_a_spacing_that_some_samplers_ignore_is_no_part_of_their_effect():
    rows = [cell("ddim", 5, 0.0, fid, spacing=name) for name, fid in (("linear", 30.0), ("quadratic", 25.0))]
    rows.append(cell("dpm++2m", 5, fid=20.0))
    rows += [cell("heun", 5, evaluations=5, fid=10.0, spacing=name) for name in ("linear", "quadratic")]
    found = {(e.base, e.value): e for e in effects(rows, known(rows)) if e.scope == "all"}
    assert {key: e.effect for key, e in found.items()} == {
        ("ddim", "dpm++2m"): -10.0, ("ddim", "heun"): -17.5, ("linear", "quadratic"): -2.5
    }  # fmt: skip
    recorded("\n".join(e.settings for e in found.values()))
    text = effects_markdown(Effects({FID: effects(rows, known(rows))}))
    assert "-10.0" in text


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of an oracle with three samplers, its jobs in this process; its folder."""
    folder = tmp_path_factory.mktemp("samplers")
    text = CONFIG.replace("eta: [0.0, 1.0]}", "sampler: [ddim, dpm++2m, heun]}").replace("[2]", "[2, 3]")
    with small_run(folder, text.replace("num_samples: 20", "num_samples: 200")) as opened:
        outcome, _ = drive(opened, folder / "run", LOCAL)
        assert not outcome.missing
        Session(replace(opened, rundir=RunDir(folder / "run")), "local", Progress.silent()).do(("report",))
    return folder / "run"


@pytest.mark.long
def test_a_run_of_samplers_is_read_as_any_other(run):
    shown = taugrid.open(str(run))
    frame = shown.quality
    assert frame[frame["sampler"] == "heun"][["steps", EVALUATIONS]].to_numpy().tolist() == [[2, 3], [3, 5]]
    recorded(shown.figure("quality").axes[0].get_xlabel())
    assert shown.cell("S0003-dpm++2m").images([0]).shape == (1, 4, 4)
    recorded((run / "tables/quality.md").read_text(), "heun: S")
    page = (run / "report.html").read_text()
    assert "network evaluations</h2>" in page
    assert "at evaluations\N{NO-BREAK SPACE}=" in page


def test_report_x_is_what_was_asked_for(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    command("report", tmp_path / "run", "--x", "steps")
    assert "| sampler | η \\ S | 2 | 3 |" in (tmp_path / "run/tables/quality.md").read_text()
    assert "sampling steps" in (tmp_path / "run/figures/quality.svg").read_text()
    recorded(command("plan", run, "--set", "report.x=nfe", code=2)[1], "must")


@pytest.mark.parametrize("name", ["sampler=dpm++2m,steps=3", "S0003-dpm++2m", "sampler=dpm++2m · S=3"])
def test_compare_takes_the_names_of_samplers(run, name):
    row = compared(run, name, "S=3 sampler=heun")
    recorded(row["others"])
    assert row["se"] > 0


def test_a_scheduler_is_chosen_by_its_name_in_tables():
    points = [{"sampler": name} for name in ("ddim", "diffusers:DEISMultistepScheduler")]
    assert chosen("sampler=DEISMultistep", points, {"sampler": "sampler"}) == [1]


def test_pictures_of_samplers_are_told_apart_by_their_names_and_titles(run):
    found = first_images(open_existing(str(run)))
    assert {group.title: sorted(group.images) for group in found} == {
        "sampler=ddim": [("0", 2), ("0", 3)], "sampler=dpm++2m": [("", 2), ("", 3)], "sampler=heun": [("", 2), ("", 3)],
    }  # fmt: skip
    paths = sorted((run / "figures").glob("samples*.png"))
    names = [path.name.rsplit("-", 1)[0] for path in paths]
    assert names == ["samples-linear", "samples-linear-dpm__2m", "samples-linear-heun"]
    for path in paths:
        picture = np.asarray(Image.open(path).convert("L"))
        assert (picture[MARGIN:][:FONT_SIZE, MARGIN:][:, :FONT_SIZE] < 128).any(), "the beginning of a title"


def test_the_ode_stays_that_of_ddim(run):
    found = open_existing(str(run)).plan
    assert {cell.settings.sampler for cell in ode_cells(found)} == {"ddim"}
    recorded(left_out(found, "reconstruct"))


def test_evaluations_are_those_of_each_set_of_options():
    options = [{"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}]
    grid = {"sampler": ["diffusers:HeunDiscreteScheduler"], "sampler_options": options, "steps": [5]}
    recorded("\n".join(evaluations(planned(grid)[0])))


def test_seconds_that_loading_diffusers_may_dominate_are_said():
    cells = (("diffusers:X", 5), ("diffusers:X", 500), ("diffusers:X", None), ("heun", 5))
    notes = [about_short_cells([{"sampler": sampler, "seconds": seconds}]) for sampler, seconds in cells]
    assert [len(each) for each in notes] == [1, 0, 0, 0]


def test_a_cell_with_its_samplers_defaults_is_named_without_options():
    options = [{}, {"solver_order": 3}]
    found, _ = planned({"sampler": ["diffusers:DEISMultistepScheduler"], "sampler_options": options, "steps": [5]})
    name = "sampler=diffusers:DEISMultistepScheduler"
    labels = [f"S=5 {name}", f"S=5 sampler_options='{{\"solver_order\": 3}}' {name}"]
    assert [cell.label for cell in found.cells] == labels
    assert [find_cell(found, cell.label) for cell in found.cells] == list(found.cells), "it reads back"
