"""The Python API: what the commands `plan`, `run` and `report` do, for notebooks and scripts.

Each function loads what it needs when it is called, so that `import taugrid` stays light.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

STAGES = ("train", "sample", "evaluate", "report")
"""The stages of `taugrid run`, in their order."""


def plan(config: str | Path, out: str | Path | None = None, assignments: Sequence[str] = ()) -> dict[str, Any]:
    """What a run would do and what is already done, as `taugrid plan --json` prints it. Starts nothing.

    Args:
        config: a file, the name of a shipped config, or a run directory.
        out: the run directory; None: runs/<name>, or `config` where that is one.
        assignments: `key=value`, as --set takes them.

    Raises:
        taugrid.errors.UserError: if the config is wrong, has no extractor, or would orphan images.
    """
    from taugrid.orchestrator.inspection import describe_plan
    from taugrid.orchestrator.opened import open_to_plan

    opened = open_to_plan(str(config), assignments, None if out is None else str(out))
    return describe_plan(opened.config, opened.plan, opened.rundir)


def run(
    config: str | Path,
    out: str | Path | None = None,
    assignments: Sequence[str] = (),
    address: str = "local",
    stages: Sequence[str] = STAGES,
    trust_code: bool = False,
) -> "pd.DataFrame":
    """Do what is still missing, like `taugrid run`, and return the results: a table with a row for each cell.

    Args:
        config: as in `plan`.
        out: as in `plan`.
        assignments: as in `plan`.
        address: `local` for a private Ray cluster, `auto`, or HOST:PORT. With a cluster that others started, the run
            directory must be named by an absolute path.
        stages: some of `STAGES`.
        trust_code: run the custom code that a run directory's config names, whoever wrote it, as --trust-code does.

    Raises:
        taugrid.errors.UserError: if something must be changed first.
        taugrid.errors.RunFailed: if a stage could not go on, or some cells could not be finished.
    """
    import pandas as pd

    from taugrid.errors import RunFailed
    from taugrid.orchestrator.opened import open_to_run
    from taugrid.orchestrator.progress import Progress
    from taugrid.orchestrator.session import Run
    from taugrid.words import counted

    runs_code = set(stages) != {"report"}
    folder = None if out is None else str(out)
    opened = open_to_run(str(config), assignments, folder, address, runs_code, trust_code)
    with Progress() as progress:
        outcome = Run(opened.config, opened.plan, opened.rundir, address, progress).do(stages)
    if outcome.missing:
        name, reason = next(iter(outcome.missing.items()))
        label = outcome.labels.get(name, name)
        raise RunFailed(f"{counted(len(outcome.missing), 'cell')} could not be finished; {label}: {reason}")
    return pd.DataFrame(outcome.rows)
