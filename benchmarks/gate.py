"""How often the nightly gate cries wolf, and what it sees: simulated nights, judged by the rule as it is.

    python -m benchmarks.gate [--cells 20 60] [--parts one-stage worst-block ...] [--nights 2000]
    python -m benchmarks.gate RUN BASELINE    # nights resampled from the influences of two real runs

Networks are exchangeable: network k turns the noise z of a sample into a z + b w_k, so all of them have the same true
FID, whatever the features. Features are rectified Gaussians; FIDs and influences come from eval/metrics/frechet.py. A
frozen block is one draw of z and of the baseline's w, which all its nights share. A true change of x standard errors is
added to the estimated difference.

With two run directories, nights are bootstrap samples of the images of real cells: their influences, and therefore
their correlations, are those of real networks, and the FIDs are linear in the samples.
"""

import argparse
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace

import numpy as np
from scipy.stats import norm
from threadpoolctl import threadpool_limits

from benchmarks.gate_worlds import Noise, World, rate
from taugrid.eval.gate.rule import ALPHA, Change, NightJudgement, Scored, correlation, is_denied, judge, screen
from taugrid.eval.gate.verdict import Verdict
from taugrid.eval.metrics.statistics import Array, standard_error

CHANGES = (0, 1, 2, 4, 6)
"""True changes, in standard errors of the cell's difference."""
PARTS = ("one-stage", "worst-block", "new-blocks")
SEARCHED = 40
"""Nights of each block by which the unluckiest is found."""


def fresh_nights(world: World, nights: int) -> Iterator[list[Change]]:
    for night in range(nights):
        random = np.random.default_rng((2, world.cells, night))
        z, old, new = (Noise.draw(random, world.cells) for _ in range(3))
        yield world.changes(world.score(z, old), world.score(z, new))


class Block:
    """A frozen block: its nights differ in the network alone."""

    def __init__(self, world: World, number: int) -> None:
        random = np.random.default_rng((3, world.cells, number))
        self.world, self.number = world, number
        self.z, old = (Noise.draw(random, world.cells) for _ in range(2))
        self.baseline = world.score(self.z, old)

    def night(self, night: int) -> list[Change]:
        random = np.random.default_rng((4, self.number, night))
        return self.world.changes(self.baseline, self.world.score(self.z, Noise.draw(random, self.world.cells)))

    def fresh(self, night: int) -> list[Change]:
        """Both networks sampled anew."""
        random = np.random.default_rng((5, self.number, night))
        z, old, new = (Noise.draw(random, self.world.cells) for _ in range(3))
        return self.world.changes(self.world.score(z, old), self.world.score(z, new))


def singled_out(usual: list[Change], draws: int) -> list[str]:
    return [cell.name for cell in screen(usual, draws=draws).worse]


def confirmed(names: list[str], fresh: list[Change], draws: int) -> NightJudgement:
    """The second stage: the fresh seed's verdict on the cells that the usual seeds singled out."""
    return judge([change for change in fresh if change.name in names], draws=draws)


def two_stages(usual: list[Change], fresh: Callable[[], list[Change]], draws: int) -> bool:
    """Whether both stages together raise the alarm; `fresh` samples both networks anew.

    A second stage that denies the first beyond chance does not count: the verdict is then that of one stage.
    """
    names = singled_out(usual, draws)
    if not names:
        return False
    judgement = confirmed(names, fresh(), draws)
    first = {cell.name: cell for cell in judge(usual, draws=draws).cells}
    before = ((first[cell.name].difference, first[cell.name].se) for cell in judgement.cells)
    if any(is_denied(one, (cell.difference, cell.se)) for one, cell in zip(before, judgement.cells, strict=True)):
        return any(cell.verdict is Verdict.WORSE for cell in first.values())
    return bool(judgement.worse)


def changed(changes: list[Change], by: float, only_first: bool) -> list[Change]:
    """The night if the cells had truly changed by `by` standard errors."""
    return [
        replace(change, difference=change.difference + by * standard_error(change.influence))
        if i == 0 or not only_first
        else change
        for i, change in enumerate(changes)
    ]


def single_cell(judgement: NightJudgement) -> bool:
    """The alarm if each cell were tested alone."""
    return any(cell.t > norm.isf(ALPHA) for cell in judgement.cells)


def report_one_stage(nights: Iterator[list[Change]], draws: int) -> None:
    """False alarms, and the power against a true change in one cell and in all cells."""
    alarms = {(by, first): 0 for by in CHANGES for first in (True, False)}
    alone = count = 0
    off_diagonal: list[Array] = []
    for changes in nights:
        count += 1
        judged = judge(changes, draws=draws)
        alone += single_cell(judged)
        t = np.array([cell.t for cell in judged.cells])
        for by in CHANGES:
            alarms[by, True] += t[0] + by > judged.critical
            alarms[by, False] += (t + by > judged.critical).any()
        if count <= 20:
            found = correlation([c.influence for c in changes], [c.seed_set for c in changes])
            off_diagonal.append(found[np.triu_indices(len(found), 1)])
    quartiles = np.quantile(np.concatenate(off_diagonal), [0.05, 0.5, 0.95])
    print(f"  correlation of two cells (5 %, median, 95 %): {', '.join(f'{q:.2f}' for q in quartiles)}")
    print(f"  last night's critical value: {judged.critical:.3f} (one cell: {norm.isf(ALPHA):.3f})")
    print(f"  false alarms: {rate(alarms[0, False], count)}; with a single cell's value: {rate(alone, count)}")
    for by in CHANGES[1:]:
        one, every = rate(alarms[by, True], count), rate(alarms[by, False], count)
        print(f"  true change of {by} se in one cell, which is called worse: {one}; in all, of which any is: {every}")


def unluckiest(world: World, blocks: int, draws: int) -> Block:
    """The frozen block with the most false alarms of one stage in its first `SEARCHED` nights."""
    made = [Block(world, number) for number in range(blocks)]
    alarms = [sum(bool(judge(block.night(night), draws=draws).worse) for night in range(SEARCHED)) for block in made]
    print(f"  one stage, {blocks} blocks of {SEARCHED} nights: {rate(sum(alarms), blocks * SEARCHED)}")
    print(f"  the worst block: {max(alarms)} of {SEARCHED}")
    return made[int(np.argmax(alarms))]


def report_worst_block(block: Block, nights: int, draws: int) -> None:
    """Both rules on nights of one block that its choice did not see; power in the first quarter of them."""
    one = screen = two = seen = 0
    for night in range(SEARCHED, SEARCHED + nights):
        usual = block.night(night)
        one += bool(judge(usual, draws=draws).worse)
        names = singled_out(usual, draws)
        screen += bool(names)
        two += two_stages(usual, lambda night=night: block.fresh(night), draws)  # type: ignore[misc]
        if night < SEARCHED + nights // 4:
            moved, fresh = (changed(at, 4, only_first=True) for at in (usual, block.fresh(night)))
            seen += two_stages(moved, lambda fresh=fresh: fresh, draws)  # type: ignore[misc]
    print(f"  {nights} other nights of it:")
    print(f"    one stage: {rate(one, nights)}")
    print(f"    two stages: {rate(two, nights)}; second stage needed: {rate(screen, nights)}")
    print(f"    two stages, one cell truly worse by 4 se: {rate(seen, nights // 4)}")


def report_new_blocks(world: World, nights: int, draws: int) -> None:
    """Two stages where every night has a block of its own: the average over all blocks."""
    made = (Block(world, 10_000 + night) for night in range(nights))
    luck = sum(two_stages(block.night(0), lambda block=block: block.fresh(0), draws) for block in made)  # type: ignore[misc]
    print(f"  two stages, a new block each night: {rate(luck, nights)}")


def real_pairs(run: str, baseline: str) -> list[tuple[str, Scored, Scored, Hashable]]:
    """Of each cell of two run directories: its name, the run's and the baseline's scores, and its block."""
    from taugrid.orchestrator.baseline.files import snapshot_of
    from taugrid.orchestrator.baseline.matching import matched

    return [
        (new.name, new.scored("fid"), old.scored("fid"), new.seed_set)
        for new, old in matched(snapshot_of(run), snapshot_of(baseline)).pairs
        if "fid" in new.influences and "fid" in old.influences
    ]


def report_growth(pairs: list[tuple[str, Scored, Scored, Hashable]]) -> None:
    """`VARIANCE_GROWTH` of real cells that are worse by 2 to 10 % of the baseline's FID."""
    rises = [(new.value / old.value - 1, new, old) for _, new, old, _ in pairs]
    shares = [
        (standard_error(new.influence - old.influence) / standard_error(old.influence)) ** 2 / rise
        for rise, new, old in rises
        if 0.02 <= rise <= 0.1
    ]
    if shares:
        told = ", ".join(f"{share:.2f}" for share in sorted(shares))
        print(f"{len(shares)} cells worse by 2 to 10 %: squared paired error / (own error squared * D / FID): {told}")


def resampled(changes: list[Change], nights: int) -> Iterator[list[Change]]:
    influences = np.stack([change.influence for change in changes], axis=1)
    influences -= influences.mean(axis=0)
    random = np.random.default_rng(6)
    for _ in range(nights):
        tonight = influences[random.integers(len(influences), size=len(influences))]
        yield [
            replace(change, difference=float(column.mean()), influence=column)
            for change, column in zip(changes, tonight.T, strict=True)
        ]


def report(part: str, cells: int, nights: int, blocks: int, draws: int, margin: float) -> None:
    """Simulate and print one of `PARTS`."""
    began, world = time.perf_counter(), World(cells, margin)
    print(f"{cells} cells, margin {100 * margin:g} %, {part}:")
    match part:
        case "one-stage":
            report_one_stage(fresh_nights(world, nights), draws)
        case "worst-block":
            report_worst_block(unluckiest(world, blocks, draws), nights, draws)
        case "new-blocks":
            report_new_blocks(world, nights, draws)
    print(f"  ({time.perf_counter() - began:.0f} s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN BASELINE")
    parser.add_argument("--nights", type=int, default=2_000)
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--draws", type=int, default=20_000, help="for each critical value; the gate itself: 200,000")
    parser.add_argument("--cells", type=int, nargs="+", default=[20, 60])
    parser.add_argument("--margin", type=float, default=0.0, help="as a share of the baseline's FID")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    with threadpool_limits(limits=1):
        if arguments.runs:
            pairs = real_pairs(*arguments.runs)
            report_growth(pairs)
            changes = [Change.between(name, new, old, 0.0, block) for name, new, old, block in pairs]
            for cells in arguments.cells:
                chosen = changes[:: max(1, len(changes) // cells)][:cells]
                print(f"{len(chosen)} real cells, {arguments.nights} nights:")
                report_one_stage(resampled(chosen, arguments.nights), arguments.draws)
            return
        for cells in arguments.cells:
            for part in arguments.parts:
                report(part, cells, arguments.nights, arguments.blocks, arguments.draws, arguments.margin)


if __name__ == "__main__":
    main()
