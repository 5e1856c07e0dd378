"""Files of samples as a worker writes them, of any images."""

from taugrid import parquet
from taugrid.storage import LOCAL

SETTINGS = {
    "seed": 3, "steps": 10, "eta": 0.2, "sigma": "eta", "spacing": "linear", "sampler": "ddim", "clip": "none",
    "cell": "0123456789", "model": "abcdef0123",
}  # fmt: skip


def write_part(path, batches, start=0, storage=LOCAL, **settings):
    """Write batches of images, each (n, C, H, W) uint8, the first of which has the index `start`."""
    settings = SETTINGS | settings
    with parquet.PartWriter(path, parquet.sample_schema({"cell": settings["cell"]}), storage) as part:
        with parquet.SampleWriter(part, settings, start) as writer:
            for batch in batches:
                writer.append(batch)
            writer.finish()
        part.commit(replace=False)
    return path
