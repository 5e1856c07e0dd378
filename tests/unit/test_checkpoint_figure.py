"""The ablation over checkpoints: figures/checkpoints.*"""

import math

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from snapshots import recorded
from test_differences import N, evidence
from test_differences import cell as scored
from test_tables import write

from taugrid import parquet
from taugrid.config import Config, Diffusion, validate
from taugrid.eval.figures.lines import checkpoints_figure, quality_figure
from taugrid.eval.tables.checkpoints import best_checkpoints
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.labels import SIGMA_HAT
from taugrid.eval.tables.long_form import COLUMNS, FID, long_form
from taugrid.eval.tables.quality import QualityTable
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.report.collect import Rows
from taugrid.orchestrator.report.write import write_report
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.workers.network.checkpoint import Checkpoint

ORDER = ["/models/run/step-5000", "/models/run/step-10000", "org/name-256"]
SHORT = ["step-5000", "step-10000", "name-256"]
STEPS = (10, 50)


def fid(checkpoint, steps, eta):
    return 3 + (40 if eta == "sigma_hat" else 5 + 10 * eta) * 10 / steps * (3 - ORDER.index(checkpoint))


def cells(etas=(0.0,), order=ORDER, score=fid, **others):
    rows = []
    for checkpoint in order:
        for eta in etas:
            for steps in STEPS:
                row = dict.fromkeys(COLUMNS)
                row |= {"cell": f"{checkpoint} {steps} {eta} {others}", "model": checkpoint, "sampler": "ddim"}
                row |= {"steps": steps, "eta": 1.0 if eta == "sigma_hat" else eta, "spacing": "linear", "clip": "none"}
                row |= {"sigma": "sigma_hat" if eta == "sigma_hat" else "eta", "num_samples": 100, "protocol": "p"}
                value = score(checkpoint, steps, eta)
                row |= {"fid": value, "fid_se": None if value is None else value / 20, "model.checkpoint": checkpoint}
                rows.append(row | others)
    return rows


def draw(rows, order=ORDER):
    figure = checkpoints_figure(long_form(rows), order)
    figure.draw_without_rendering()
    return figure


def lines(panel):
    bars = (container for container in panel.containers if isinstance(container, ErrorbarContainer))
    return {container.get_label(): container for container in bars}


def names(panel):
    return [label.get_text() for label in panel.get_xticklabels()]


def test_a_line_for_each_length_over_the_checkpoints_in_the_order_of_the_grid():
    """As the frame has them, step-10000 would come before step-5000."""
    (panel,) = draw(cells()).axes
    assert names(panel) == SHORT
    assert list(lines(panel)) == ["$S$ = 10", "$S$ = 50"]
    for steps in STEPS:
        line, _, (stems,) = lines(panel)[f"$S$ = {steps}"].lines
        expected = np.array([fid(checkpoint, steps, 0.0) for checkpoint in ORDER])
        np.testing.assert_allclose(line.get_ydata(orig=False), expected)
        np.testing.assert_allclose(line.get_xdata(orig=False), [0, 1, 2], atol=0.05)
        ends = np.array([segment[:, 1] for segment in stems.get_segments()])
        np.testing.assert_allclose(ends, np.stack([0.95 * expected, 1.05 * expected], axis=1))
    assert (panel.get_yscale(), panel.get_ylabel(), panel.get_title()) == ("log", "FID (lower is better)", "η = 0.0")


def test_a_panel_for_each_eta_and_one_legend():
    figure = draw(cells(etas=(0.0, 0.5, "sigma_hat")))
    assert [panel.get_title() for panel in figure.axes] == ["η = 0.0", "η = 0.5", f"η = {SIGMA_HAT}"]
    assert len({panel.get_ylim() for panel in figure.axes}) == 1
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["$S$ = 10", "$S$ = 50"]
    found = lines(figure.axes[2])["$S$ = 10"].lines[0].get_ydata(orig=False)
    np.testing.assert_allclose(found, [fid(checkpoint, 10, "sigma_hat") for checkpoint in ORDER])


def independent(z, etas=(0.0,), without=(), **others):
    """A table of eight checkpoints with independent errors, S = 10: the second is z errors worse than the first, and
    the rest are far worse."""
    draws = np.random.default_rng(5).standard_normal((N, 8 * len(etas)))
    orthogonal, _ = np.linalg.qr(draws - draws.mean(axis=0))
    errors = iter(0.5 * math.sqrt(N * (N - 1)) * orthogonal.T)
    rows, influences = [], {}
    for eta in etas:
        for place in range(8):
            name = f"/run/step-{place + 1}"
            worse = (0.0, z * math.hypot(0.5, 0.5))[place] if place < 2 else 40.0
            row = scored(f"{eta}/{place + 1}", eta=eta, fid=10 + 5 * eta + worse, model=name, **others)
            rows.append(row | {"model.checkpoint": name})
            influences[row["cell"]] = next(errors)
    known = {name: phi for name, phi in influences.items() if name not in without}
    return QualityTable(rows, evidence(rows, known))


def title_of(quality):
    best = best_checkpoints(quality)
    order = [row["model.checkpoint"] for row in quality.rows]
    panel = checkpoints_figure(quality.long, list(dict.fromkeys(order)), quality.used_protocols, best).axes[0]
    return panel.get_title().splitlines()[1]


@pytest.mark.parametrize(("z", "title"), [(2.47, "S = 10: best 1 (≈ 2)"), (3.5, "S = 10: best 1")])
def test_the_title_names_what_the_table_marks(z, title):
    """Of eight cells, 2.47 errors tell none from the best: the best is best by luck too."""
    quality = independent(z)
    assert quality.section(FID).alike == ({"0.0/2"} if "≈" in title else set())
    assert title_of(quality) == title


def test_it_has_the_limit_of_the_tables_column_where_a_panel_has_fewer_cells():
    """Eight checkpoints alone have a limit of 3.0, with those of another eta in their column 3.4."""
    for etas, is_alike in (((0.0,), False), ((0.0, 1.0), True)):
        quality = independent(3.2, etas)
        assert ("0.0/2" in quality.section(FID).alike) == is_alike
        assert title_of(quality) == ("S = 10: best 1 (≈ 2)" if is_alike else "S = 10: best 1")


def test_the_title_names_checkpoints_that_are_not_tested():
    quality = independent(2.47, without=("0.0/4",))
    assert quality.section(FID).untested == {"0.0/4"}
    assert title_of(quality) == "S = 10: best 1 (≈ 2; ? 4)"


def test_checkpoints_that_can_not_be_compared_have_a_best_of_their_own():
    quality = independent(1.5)
    rows = [row | {"protocol": "old" if row["fid"] > 40 else row["protocol"]} for row in quality.rows]
    protocols = quality.evidence.protocols
    [now] = protocols.values()
    known = Evidence(
        quality.evidence.influences, quality.evidence.pairings, {**protocols, "old": now | {"versions": {"torch": "1"}}}
    )
    best = best_checkpoints(QualityTable(rows, known))
    assert [(one.cell, len(one.alike)) for one in best] == [("0.0/1", 1), ("0.0/3", 5)]


def test_what_differs_in_more_than_the_checkpoint_has_a_panel_of_its_own():
    figure = draw([*cells(num_samples=100), *cells(num_samples=200)])
    assert [panel.get_title() for panel in figure.axes] == ["η = 0.0, num_samples = 100", "η = 0.0, num_samples = 200"]


def test_a_checkpoint_without_an_fid_leaves_a_gap():
    missing = cells(score=lambda checkpoint, s, eta: None if checkpoint == ORDER[1] else fid(checkpoint, s, eta))
    (panel,) = draw(missing).axes
    line = lines(panel)["$S$ = 10"].lines[0]
    assert np.isnan(line.get_ydata(orig=False)).tolist() == [False, True, False]
    (panel,) = draw(cells(order=ORDER[:1])).axes
    assert names(panel) == SHORT, "those that are not scored yet keep their place"


@pytest.mark.parametrize("rows", [[], cells(score=lambda *_: None)], ids=["no cells", "no scores"])
def test_a_figure_without_any_fid_says_so(rows):
    figure = checkpoints_figure(long_form(rows) if rows else long_form(cells()).head(0), ORDER)
    recorded("\n".join([text.get_text() for text in figure.axes[0].texts]))


def test_long_names_and_dollar_signs_leave_the_panel_its_size():
    long = [
        "/models/a$_$/epoch-1",
        "/models/b$_$/epoch-1",
        "a-checkpoint-with-quite-a-long-name-of-56-characters-in-all",
    ]
    rows = cells(order=long, score=lambda *_: 5.0)
    panel, short = draw(rows, long).axes[0], draw(cells()).axes[0]
    assert names(panel)[0] == r"a\$_\$/epoch-1"
    assert panel.get_window_extent().height > 0.8 * short.get_window_extent().height


def loaded(path):
    unet = {"sample_size": 8, "in_channels": 1, "out_channels": 1}
    return Checkpoint(path, f"{path}/unet", unet, path[-8:].rjust(64, "0"), Diffusion(), {})


def of_grid(grid, **sample):
    config = validate(Config, {"name": "x", "grid": grid, "sample": {"seed": 0} | sample}, "test")
    return config, plan(config, Lookups(loaded))


def test_a_report_draws_it_where_the_grid_has_the_axis_and_nowhere_else(tmp_path):
    rundir = RunDir(tmp_path)
    grid = [{"model.checkpoint": ORDER, "steps": list(STEPS), "eta": [0.0]}]
    config, planned = of_grid(grid)
    rows = [row | {"cell": cell.id, "model": cell.model.id} for cell, row in zip(planned.cells, cells(), strict=True)]
    reference = {"dataset": "digits", "split": "train", "num_images": 9, "sha256": "ab" * 32}
    protocols = {"p": {"reference": reference, "num_samples": 100}}
    evidence = Evidence({}, {row["cell"]: 0 for row in rows}, protocols, {row["cell"]: "none" for row in rows})
    write_report(Run(config, planned, rundir), Rows(rows, [], evidence))
    assert {"checkpoints.png", "checkpoints.svg"} <= {path.name for path in rundir.figures.iterdir()}
    one = config.model_copy(update={"grid": [{"model.checkpoint": ORDER[:1], "steps": list(STEPS)}]})
    few = [row for row in rows if row["model.checkpoint"] == ORDER[0]]
    write_report(Run(one, plan(one, Lookups(loaded)), rundir), Rows(few, [], evidence))
    assert not list(rundir.figures.glob("checkpoints.*")), "one checkpoint is no ablation, and the old figure is stale"


def test_rows_of_the_table_and_a_panel_for_each_checkpoint_in_the_order_of_the_grid(tmp_path):
    write(cells(etas=(0.0, 0.5)), tmp_path)
    text = (tmp_path / "quality.md").read_text()
    first = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert first == ["checkpoint", ":--", *(name for name in SHORT for _ in range(2))]
    panels = quality_figure(long_form(cells(etas=(0.0, 0.5)))).axes
    assert [panel.get_title() for panel in panels] == [f"checkpoint={name}" for name in SHORT]


def test_pictures_of_samples_are_named_by_the_short_names_of_checkpoints(tmp_path):
    config, planned = of_grid([{"model.checkpoint": ORDER, "steps": list(STEPS)}], num_samples=2)
    rundir = RunDir(tmp_path)
    for cell in planned.cells:
        for shard in cell.shards:
            white = np.full((shard.stop - shard.start, 1, 8, 8), 255, dtype=np.uint8)
            with parquet.PartWriter(rundir.sample_part(cell, shard), parquet.picture_schema({})) as part:
                part.write(parquet.pictures(white, shard.start))
                part.commit(replace=False)
    write_report(Run(config, planned, rundir), Rows([], [], Evidence({}, {}, {})))
    pairs = zip(SHORT, planned.models, strict=True)
    expected = {f"samples-linear-checkpoint={name}-{model.id}.png" for name, model in pairs}
    assert {path.name for path in rundir.figures.glob("samples*")} == expected
