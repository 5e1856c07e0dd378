"""Plans of small configs."""

from taugrid.config import Config, validate
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.workers.network.checkpoint import read_checkpoint

ORACLE = {"model": {"oracle": "gaussian"}, "data": {"name": "gaussian", "shape": [1, 4, 4]}}


def planned(read=read_checkpoint, dry=False, **sections):
    """The plan of a config, of an oracle unless the sections say otherwise."""
    values = {"name": "x", **ORACLE, **sections, "sample": {"seed": 0, **sections.get("sample", {})}}
    return plan(validate(Config, values, "test"), Lookups(read), dry)
