"""What tables, `--until` and the figure of checkpoints say of cells beside the best of them: one rule for all."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from snapshots import recorded
from test_differences import N, cell, evidence, indistinguishable, spread
from test_one_table import SCHEDULE, TRAINING
from test_tables import table_rows

from taugrid.eval.tables import seeds
from taugrid.eval.tables.alike import look
from taugrid.eval.tables.differences import differences
from taugrid.eval.tables.long_form import FID
from taugrid.eval.tables.quality import QualityTable

PAIRINGS = {"pixels": (2020, (3, 32, 32)), "latents": (2020, (4, 8, 8))}


def two_shapes(fid):
    """A checkpoint of pixels and one of latents, 13.00 ± 0.50 and `fid` ± 0.50, which share no noise."""
    rows = [cell("pixels", fid=13.0), cell("latents", fid=fid)]
    rows = [row | {"model": row["cell"], "model.checkpoint": f"runs/{row['cell']}"} for row in rows]
    return rows, evidence(rows, {name: spread(0.5) for name in PAIRINGS}, pairings=PAIRINGS)


@pytest.mark.parametrize(("z", "marked"), [(0.02, True), (1.95, True), (1.97, False)])
def test_cells_of_other_noise_are_tested_by_the_errors_of_both(z, marked):
    rows, known = two_shapes(13.0 + z * math.hypot(0.5, 0.5))
    assert indistinguishable(rows, known) == ({"latents"} if marked else set())
    [row] = differences(rows, known)
    assert [row["se"], row["z"]] == pytest.approx([math.hypot(0.5, 0.5), z])
    assert row["along"] == "model.checkpoint"
    assert not row["joined"]
    assert "unpaired" in row["note"]


def test_cells_of_other_noise_whose_samples_are_all_alike_are_not_tested():
    """As of `agreement`, if all images of both agree. It was a division by zero, in which each report ended."""
    rows, known = two_shapes(13.5)
    constant = replace(known, influences={name: np.zeros(N) for name in PAIRINGS})
    section = QualityTable(rows, constant).section(FID)
    assert (section.alike, section.untested) == (set(), {"latents"})
    [row] = differences(rows, constant)
    assert (row["difference"], row["se"], row["z"]) == (0.5, None, None)


def test_what_has_no_test_has_a_mark_that_says_so_also_in_the_file(tmp_path):
    """Without an error of `bare`, nothing is known of its difference; `far` is worse."""
    rows = [cell("best", eta=0.0), cell("bare", eta=0.5, fid=10.1), cell("far", eta=1.0, fid=30.0)]
    table = QualityTable(rows, evidence(rows, {"best": spread(0.5), "far": spread(0.3)}))
    section = table.section(FID)
    assert (section.alike, section.untested) == (set(), {"bare"})
    numbers = [row[-1] for row in table_rows(table.markdown)[1:]]
    assert numbers == ["**10.00 ± 0.50**", "10.10 ± 0.50 ?", "30.00 ± 0.50"]
    recorded(table.markdown, "? ")
    table.write(tmp_path)
    again = QualityTable.read(json.loads((tmp_path / "quality.json").read_text()))
    assert again.markdown == table.markdown
    of_others = QualityTable(rows, evidence(rows, {"bare": spread(0.5), "far": spread(0.3)})).section(FID)
    assert (of_others.alike, of_others.untested) == (set(), {"bare", "far"}), "the best has no error"
    plain = [row | {"fid_se": None} for row in rows]
    assert QualityTable(plain, evidence(plain, {})).section(FID).untested == set(), "no number here has an error"


def test_trainings_that_share_fewer_than_two_seeds_are_marked_as_untested():
    fids = {"best": {0: 9.0, 1: 9.1}, "apart": {2: 9.2, 3: 9.3}, "near": {0: 9.3, 1: 9.1}}
    rows = []
    for schedule, by_seed in fids.items():
        for seed, fid in by_seed.items():
            name = f"{schedule}-{seed}"
            rows.append(cell(name, fid=fid, model=name, **{SCHEDULE: schedule, TRAINING: seed}))
    section = QualityTable(rows, evidence(rows, {})).section(FID)
    assert (section.alike, section.untested) == ({"near-0"}, {"apart-2"})


NOISE = {"common": (0, 0, 0, 0), "own": (0, 1, 2, 3), "mixed": (0, 0, 1, 1)}
"""For each of four cells of a column, whose noise it starts from."""


@pytest.mark.parametrize(
    ("noise", "tables"), [("mixed", 300), *(pytest.param(noise, 2_000, marks=pytest.mark.long) for noise in NOISE)]
)
def test_at_most_5_percent_of_tables_of_equal_cells_name_one_that_is_worse(noise, tables, monkeypatch):
    """Bound: 5 % and two standard errors of so many tables, 6.0 % for 2,000. With |z| < 1.96 against the measured best,
    about 15 to 20 % name one. Cells of common noise correlate by 0.8, and their errors differ threefold."""
    monkeypatch.setattr(seeds, "DRAWS", 10_000)
    random = np.random.default_rng((31, len(noise)))
    scales = np.linspace(1, 3, 4)[:, None]
    pairings = {str(place): group for place, group in enumerate(NOISE[noise])}
    named = 0
    for _ in range(tables):
        common = random.standard_normal((4, N))[list(NOISE[noise])]
        phi = scales * (math.sqrt(0.8) * common + math.sqrt(0.2) * random.standard_normal((4, N)))
        rows = [cell(str(place), eta=place / 10, fid=50 + phi[place].mean()) for place in range(4)]
        known = evidence(rows, dict(zip(pairings, phi, strict=True)), pairings=pairings)
        section = QualityTable(rows, known).section(FID)
        named += len(section.alike) < 3
    assert 0.02 < named / tables <= 0.05 + 2 * math.sqrt(0.0475 / tables)


def test_until_tests_cells_of_other_noise_by_the_errors_of_both_too():
    """They are not the same samples, so more images may tell them apart."""
    for fid, groups in ((13.01, [["pixels", "latents"]]), (25.0, [])):
        rows, known = two_shapes(fid)
        found = look([["pixels", "latents"]], {row["cell"]: row for row in rows}, known, FID, looks=1)
        assert (found.groups, found.same) == (groups, set())


@pytest.mark.parametrize(("cells", "undecided"), [("ab", "ab"), ("abc", "ab"), ("b", "b")])
def test_until_leaves_the_order_of_a_cell_without_an_error_undecided(cells, undecided):
    """Nothing tests `b`, so whether `a` is better is not known, though it is better than `c`."""
    rows = {name: cell(name, fid=fid) for name, fid in (("a", 10.0), ("b", 11.0), ("c", 30.0)) if name in cells}
    known = evidence(list(rows.values()), {"a": spread(0.5), "c": spread(0.3)})
    found = look([list(cells)], rows, known, FID, looks=1)
    assert (found.groups, found.same, found.untested) == ([], set(), set(undecided))
