"""The ablation over checkpoints: figures/checkpoints.*"""

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from snapshots import recorded
from test_tables import write

from taugrid import parquet
from taugrid.config import Config, Diffusion, validate
from taugrid.eval.figures.lines import checkpoints_figure, quality_figure
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.labels import SIGMA_HAT
from taugrid.eval.tables.long_form import COLUMNS, long_form
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
