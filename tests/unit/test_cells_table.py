"""tables/cells: what joins samples with the settings of a grid."""

import pandas as pd
import pyarrow.parquet as pq
from test_grid import planned

from taugrid.orchestrator.report.write import FIRST, write_cells
from taugrid.orchestrator.rundir.directory import RunDir


def test_each_cell_has_a_row_with_every_key_of_the_grid_in_its_own_type(tmp_path):
    grid = {
        "diffusion.schedule": ["linear", "cosine"], "train.learning_rate": [1e-3, 1],
        "model.unet.block_out_channels": [[8, 8], [16, 16]], "train.gradient_clip": [None, 1.0],
        "steps": [3], "eta": [0.5, "sigma_hat"], "spacing": ["linear", [1, 2, 1000]],
    }  # fmt: skip
    plan = planned(grid=grid)
    write_cells(plan, RunDir(tmp_path))
    table = pq.read_table(tmp_path / "tables/cells.parquet")
    dotted = [key for key in grid if "." in key]
    assert table.column_names == [*FIRST, *dotted]
    assert [str(table.schema.field(key).type) for key in (*dotted, "steps", "eta", "num_samples")] == [
        "string", "double", "list<element: int64>", "double", "int64", "double", "int64",
    ]  # fmt: skip
    assert table["name"].to_pylist() == [cell.label for cell in plan.cells]
    assert table["cell"].to_pylist() == [cell.id for cell in plan.cells]
    assert table["train.learning_rate"].to_pylist() == [cell.model.source.train.learning_rate for cell in plan.cells]
    assert set(table["spacing"].to_pylist()) == {"linear", "1,2,1000"}
    text = pd.read_csv(tmp_path / "tables/cells.csv")
    assert list(text.columns) == table.column_names
    assert text["model.unet.block_out_channels"][0] == "[8, 8]"
    before = (tmp_path / "tables/cells.parquet").read_bytes()
    write_cells(plan, RunDir(tmp_path))
    assert (tmp_path / "tables/cells.parquet").read_bytes() == before


def test_cells_join_samples_and_scores(tmp_path):
    plan = planned(grid={"diffusion.schedule": ["linear", "cosine"], "steps": [3]})
    write_cells(plan, RunDir(tmp_path))
    samples = pd.DataFrame({"cell": [plan.cells[1].id] * 2, "index": [0, 1]})
    joined = samples.merge(pd.read_parquet(tmp_path / "tables/cells.parquet"), on="cell")
    assert joined["diffusion.schedule"].tolist() == ["cosine"] * 2
