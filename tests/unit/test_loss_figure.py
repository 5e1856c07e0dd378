import numpy as np
import pandas as pd
from matplotlib.colors import to_rgba
from tiny import UNET

from taugrid.config import Config, validate
from taugrid.eval.figures.lines import SMOOTHING, losses_figure
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.report.write import loss_curves, write_losses
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.workers.training.log import Log, Record, is_logged


def a_log(steps, noise=0.0):
    logged = np.array([step for step in range(1, steps + 1) if is_logged(step, steps)])
    return pd.DataFrame({"step": logged, "loss": 2 * logged**-0.5 * (1 + noise * (-1.0) ** np.arange(len(logged)))})


def test_each_model_has_a_light_line_as_logged_and_a_dark_one_that_is_smooth():
    logs = {"first": a_log(2000, noise=0.3), "second": a_log(60_000)}
    figure = losses_figure(logs)
    figure.draw_without_rendering()
    (panel,) = figure.axes
    assert (panel.get_xscale(), panel.get_yscale()) == ("log", "log")
    light, dark = panel.lines[0::2], panel.lines[1::2]
    for raw, smooth, log in zip(light, dark, logs.values(), strict=True):
        np.testing.assert_array_equal(raw.get_ydata(), log["loss"])
        np.testing.assert_array_equal(smooth.get_xdata(), log["step"])
        assert raw.get_alpha() < 0.5
        assert to_rgba(raw.get_color()) == to_rgba(smooth.get_color())
        falling = 2 * log["step"] ** -0.5
        late = log["step"].between(100, log["step"].iloc[-1] / SMOOTHING)
        np.testing.assert_allclose(smooth.get_ydata()[late], falling[late], rtol=0.06)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["first", "second"]


def test_long_names_leave_room_for_the_panel():
    alone = losses_figure({"m": a_log(300)})
    many = losses_figure({f"{'long name ' * 15}{i}": a_log(300) for i in range(8)})
    for figure in (alone, many):
        figure.draw_without_rendering()
    heights = [figure.axes[0].get_window_extent().height for figure in (alone, many)]
    assert heights[1] > 0.8 * heights[0]
    assert not many.legends[0].get_window_extent().overlaps(many.axes[0].get_tightbbox())


def test_the_running_mean_is_over_the_steps_within_a_factor():
    figure = losses_figure({"m": pd.DataFrame({"step": [4, 5, 6, 7, 100], "loss": [1.0, 2.0, 6.0, 10.0, 5.0]})})
    mean = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(mean, [1.5, 3.0, 6.0, 8.0, 5.0])  # 5 is within 1.25 of 4 and of 6, and 7 of 6


def test_a_loss_that_is_not_finite_leaves_a_gap_only_where_no_other_is_near():
    losses = [1.0, float("nan"), 6.0, 10.0, float("inf"), 5.0]
    figure = losses_figure({"m": pd.DataFrame({"step": [4, 5, 6, 7, 50, 100], "loss": losses})})
    mean = figure.axes[0].lines[1].get_ydata()
    np.testing.assert_allclose(mean, [1.0, 3.5, 8.0, 8.0, np.nan, 5.0])


def test_a_report_draws_the_models_that_are_trained(tmp_path):
    grid = {"train.steps": [60, 70], "steps": [10, 20], "weights": ["ema", "raw"]}
    planned = plan(validate(Config, {"name": "t", "model": {"unet": UNET}, "grid": grid}, "test"))
    rundir = RunDir(tmp_path)
    write_losses(planned, rundir)
    assert not rundir.figures.exists()
    for model, loss in zip(planned.models, (0.5, 0.25), strict=True):
        Log(rundir.models / model.id / "train", 0, tensorboard=False).write(Record(1, loss, 1e-3, 1.0, 1, 0.1))
    write_losses(planned, rundir)
    assert {path.name for path in rundir.figures.iterdir()} == {"loss.png", "loss.svg"}
    curves = {name: log["loss"].tolist() for name, log in loss_curves(planned, rundir).items()}
    assert curves == {"train.steps=60": [0.5], "train.steps=70": [0.25]}
