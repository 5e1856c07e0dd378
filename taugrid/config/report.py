"""`report`: what tables and figures show."""

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
