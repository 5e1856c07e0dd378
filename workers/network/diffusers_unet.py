"""diffusers' `UNet2DModel`, imported in half the time: each worker imports it before its first image.

diffusers imports parts of SciPy for the noise levels of schedulers that never run here, and makes so many objects that
Python's garbage collector takes a third of the time. docs/decisions.md, "What a worker imports", has the figures.
"""

from taugrid.workers.importing import imported_on_use, uncollected

with uncollected(), imported_on_use("scipy.integrate", "scipy.stats"):
    from diffusers import UNet2DModel as UNet2DModel
