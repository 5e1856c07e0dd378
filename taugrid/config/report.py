"""`report`: what tables and figures show."""

from taugrid.config.section import Positive, Section


class Report(Section):
    """What the tables and figures show."""

    images_per_cell: Positive = 8
    """Images of each cell in figures/samples.png."""
    join_protocols: bool = False
    """Have cells in one table whose protocols differ (versions, say), and mark the fewer; else they stand apart."""
    reconstructed_images: Positive = 1_000
    """Images that `taugrid reconstruct` encodes and decodes: the first so many of those held out, or all."""
    interpolated_pairs: Positive = 4
    """Rows of figures/interpolations-<cell>.png."""
