"""`report`: what tables and figures show."""

from typing import Annotated, Any

from pydantic import Field

from taugrid.config.section import Positive, Section


class Report(Section):
    """What the tables and figures show."""

    images_per_cell: Positive = 8
    """Images of each cell in figures/samples.png."""
    join_protocols: bool = False
    """Put cells whose protocols differ (in versions, say) in one table, and mark the minority; else separate tables."""
    reconstructed_images: Positive = 1_000
    """Number of held-out images, from the first, that `taugrid reconstruct` encodes and decodes."""
    interpolated_pairs: Positive = 4
    """Rows of figures/interpolations-<cell>.png."""
    rows: list[str] | None = None
    """Keys of the grid that a table's rows are, in this order; null: all that vary, and eta at the end. What is neither
    in rows nor in columns makes separate tables."""
    columns: Annotated[str, Field(min_length=1)] = "steps"
    """The key that a table's columns are."""
    base: dict[str, Any] = {}
    """Key -> the value that effects are differences to, as in {schedule: linear}; otherwise the first of the grid.
    `steps` and `eta` have effects only if they are named here."""
