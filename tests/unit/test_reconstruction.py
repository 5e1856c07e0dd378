import json

import pandas as pd
import pytest
from snapshots import recorded

from taugrid.eval.tables.reconstruction import (
    RECONSTRUCTION_COLUMNS,
    reconstruction_frame,
    reconstruction_markdown,
    write_reconstruction,
)

ABOUT = "Images 0 to 999 of CIFAR10's test split; the network was trained on the train split."
PAPER = {10: 0.014, 20: 0.0065, 1000: 0.0001}


def row(steps, mse=None, mse_se=None, **others):
    """A row of the contract with plausible settings, and values by which its columns can be told apart."""
    settings = {"model": "a1b2c3d4e5", "weights": "ema", "spacing": "linear", "steps": steps, "num_images": 1000}
    settings |= {"network_evaluations": 2 * steps, "mse": mse, "mse_se": mse_se, "mse_8bit": 0.5, "seconds": 1.25}
    return settings | others


def paper(factor=1.0, **others):
    """Table 2 of the paper, times `factor`, with a standard error of 3 percent."""
    return [row(s, factor * mse, 0.03 * factor * mse, **others) for s, mse in PAPER.items()]


def markdown(rows):
    return reconstruction_markdown(reconstruction_frame(rows), ABOUT)


def table_rows(text):
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines if not line[0].strip().startswith(":-")]


def test_a_row_for_each_setting_that_differs_and_the_best_of_each_column_bold():
    rows = [*paper(), row(10, 0.02, 0.001, spacing="quadratic"), row(20, 0.003, 0.001, spacing="quadratic")]
    text = markdown(rows)
    assert table_rows(text) == [
        ["S", "10", "20", "1000"],
        ["spacing = linear", "**14.00 ± 0.42**", "6.50 ± 0.20", "0.1000 ± 0.0030"],
        ["spacing = quadratic", "20.0 ± 1.0", "**3.0 ± 1.0**", "–"],
    ]
    recorded(text, "weights")
    recorded(text, "Bold")


@pytest.mark.parametrize(
    ("mse", "mse_se", "text"),
    [
        (0.0001234, 0.00000271, "0.1234 ± 0.0027"),
        (1.234e-7, None, "0.000123"),  # of a single image there is no standard error
        (0.25, 0.011, "250 ± 11"),
        (None, None, "–"),
        (float("inf"), float("nan"), "–"),  # an untrained network blows up
    ],
)
def test_how_an_error_is_written(mse, mse_se, text):
    assert table_rows(markdown([row(10, mse, mse_se)])) == [["S", "10"], ["Error", text]]


def test_models_are_named_by_what_tells_them_apart_or_by_their_ids():
    by_axis = [*paper(model="m1", **{"model.checkpoint": "a|b"}), *paper(model="m2", **{"model.checkpoint": "c"})]
    assert r"| model.checkpoint = a\|b | **14.00 ± 0.42** |" in markdown(by_axis), "a bar splits no cell"
    by_id = [*paper(model="m1"), *paper(model="m2")]
    assert [line[0] for line in table_rows(markdown(by_id))] == ["S", "model = m1", "model = m2"]
    both = [*paper(model="m1"), *paper(model="m1", weights="raw"), *paper(model="m2")]
    recorded("\n".join([line[0] for line in table_rows(markdown(both))]))


def test_the_text_below_the_table_says_what_the_numbers_are(tmp_path):
    write_reconstruction([], tmp_path, ABOUT)  # a run of which nothing is done yet
    write_reconstruction(paper(), tmp_path, ABOUT, ["1 image is missing"])
    text = (tmp_path / "reconstruction.md").read_text(encoding="utf-8")
    blocks = text.split("\n\n")
    recorded(blocks[0])
    assert table_rows(blocks[1])[1] == ["Error", "14.00 ± 0.42", "6.50 ± 0.20", "0.1000 ± 0.0030"], "in thousandths"
    assert blocks[2] == ABOUT
    recorded(blocks[3])
    recorded(blocks[4])
    assert "Bold" not in text  # with a single row there is nothing to choose from
    recorded(text, "missing")
    assert "±" not in markdown([row(10, 0.014)])


def test_csv_has_the_columns_and_types_of_the_contract_and_unscaled_errors(tmp_path):
    rows = [row(s, mse, mse / 7, **{"train.steps": 400, "model.unet.block_out_channels": [32, 64]})
            for s, mse in PAPER.items()]  # fmt: skip
    rows.append(row(50, None, None, **{"train.steps": 400, "model.unet.block_out_channels": [32, 64]}))
    write_reconstruction(rows, tmp_path, ABOUT)
    frame = pd.read_csv(tmp_path / "reconstruction.csv", float_precision="round_trip")
    axes = ["model.unet.block_out_channels", "train.steps"]
    assert list(frame.columns) == [*RECONSTRUCTION_COLUMNS, *axes]
    assert {str(frame[c].dtype) for c in ("steps", "num_images", "network_evaluations", "train.steps")} == {"int64"}
    assert frame["steps"].tolist() == [10, 20, 50, 1000]
    assert frame["mse"].dropna().tolist() == [0.014, 0.0065, 0.0001]
    assert frame["mse_se"].dropna().tolist() == [0.014 / 7, 0.0065 / 7, 0.0001 / 7]  # every bit survives
    assert json.loads(frame["model.unet.block_out_channels"][0]) == [32, 64]


def test_json_says_what_the_rows_are_and_is_json_where_a_value_is_missing(tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    write_reconstruction([row(10, 0.014, float("nan")), row(20, float("inf"))], tmp_path, ABOUT, ["a note"])
    document = json.loads((tmp_path / "reconstruction.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert (document["about"], document["notes"]) == (ABOUT, ["a note"])
    assert [(r["steps"], r["mse"], r["mse_se"]) for r in document["rows"]] == [(10, 0.014, None), (20, None, None)]
    assert isinstance(document["rows"][0]["steps"], int)
