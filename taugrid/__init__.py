"""taugrid: how good are a diffusion model's samples at S steps?"""

__version__ = "0.1.0"
