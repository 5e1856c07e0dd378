"""`diffusion`: the forward process and what the network predicts."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from taugrid.config.section import Positive, Section

SIGMA_KEYS = ("sigma_min", "sigma_max", "rho", "sigma_data")  # keys of the process `edm`

Predicts = Literal["epsilon", "sample", "v_prediction", "consistency", "edm", "velocity", "average_velocity"]


class Diffusion(Section):
    """The forward process. A key left `null` comes from a loaded checkpoint, or else from `DIFFUSION_DEFAULTS`."""

    # None means the same as the value in `DIFFUSION_DEFAULTS`
    later_keys = {"process": None} | dict.fromkeys(SIGMA_KEYS)

    timesteps: Positive | None = None
    """T, the number of times. For a loaded checkpoint, T of its training. Of a flow: what the network is told at t = 1,
    so 1 for t in [0, 1]; 1000 for diffusers' networks and for those that taugrid trains. `edm` has none, except for
    consistency models."""
    schedule: Literal["linear", "scaled_linear", "cosine", "sigmoid", "constant", "jsd"] | None = None
    """How beta_1..beta_T go from `beta_start` to `beta_end`. `cosine` (Nichol & Dhariwal 2021) and `jsd` (1/T, 1/(T-1),
    ..., 1) use neither; `constant` is `beta_end`."""
    beta_start: Annotated[float, Field(gt=0, lt=1)] | None = None
    """beta_1, where the schedule has one."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] | None = None
    """beta_T, where the schedule has one."""
    prediction: Predicts | None = None
    """What the network predicts: the noise, the image, or v (Salimans & Ho 2022). Of `edm`: `edm`, F of Karras et al.
    2022, eq. 7, or `v_prediction`, -F, or `sample`; `consistency`: the end of the ODE's path, scaled as in Song et al.
    2023, appendix C. Of `flow`: `velocity`, `sample`, or `average_velocity` between two times (flow maps)."""
    trained_betas: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] | None = None
    """beta_1..beta_T, listed. They replace `schedule`, `beta_start` and `beta_end`, which then stay null."""
    rescale_betas_zero_snr: bool | None = None
    """Shift and scale sqrt(alpha) so that no signal is left at T (Lin et al. 2024, algorithm 1)."""
    set_alpha_to_one: bool | None = None
    """alpha_0 = 1, as in the paper; false: alpha_0 = alpha_1, so the last step does not move (diffusers' name)."""
    process: Literal["ddpm", "edm", "flow"] | None = None
    """null: the loaded checkpoint's, or else `ddpm`, from betas. `edm`: x = x_0 + sigma eps (Karras et al. 2022), told
    ln(sigma) / 4. `flow`: x = (1 - t) x_0 + t eps, told t. Both are continuous in time."""
    sigma_min: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """The least noise level of `edm`."""
    sigma_max: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """The largest noise level of `edm`, that of x_T."""
    rho: Annotated[float, Field(ge=1, le=100)] | None = None
    """How the noise levels of `edm` crowd at the small ones: sigma^(1/rho) is linear in time."""
    sigma_data: Annotated[float, Field(ge=1e-6, le=1e6)] | None = None
    """The images' standard deviation as the network's scalings have it; for `edm`."""

    @property
    def predicts(self) -> Predicts:
        """`prediction`; the section must be resolved, with no key left null."""
        assert self.prediction is not None
        return self.prediction

    @property
    def named_betas(self) -> str:
        """The betas, or the noise levels, of a resolved section, in a few words."""
        if self.process == "flow":
            return "flow"
        if self.process == "edm":
            ends, shape = (self.sigma_min, self.sigma_max), (self.rho, self.sigma_data)
            return "edm with sigma from {:g} to {:g}, rho {:g}, sigma_data {:g}".format(*ends, *shape)
        if self.trained_betas is not None:
            return f"{len(self.trained_betas)} trained_betas"
        return f"{self.schedule} betas from {self.beta_start:g} to {self.beta_end:g}"

    @property
    def in_words(self) -> str:
        """The process and the prediction of a resolved section, in a few words.

        The usual settings are left out: alpha_0 = 1, no rescaling, a network that predicts epsilon.
        """
        times = "" if self.timesteps is None else f"T = {self.timesteps}"
        if self.process == "flow":
            times = "" if self.timesteps == 1 else f"told {self.timesteps} t"
        phrases = [
            self.named_betas,
            times,
            "rescaled to zero SNR" if self.rescale_betas_zero_snr else "",
            "alpha_0 = alpha_1" if self.set_alpha_to_one is False else "",
            f"predicts {self.prediction}" if self.prediction != "epsilon" else "",
        ]
        return ", ".join(filter(None, phrases))

    @model_validator(mode="after")
    def _one_source_of_betas(self) -> "Diffusion":
        given = [key for key in SCHEDULE_KEYS if getattr(self, key) is not None]
        if self.trained_betas is not None and given:
            raise ValueError(f"trained_betas replaces {' and '.join(given)}; set one or the other")
        return self


SCHEDULE_KEYS = ("schedule", "beta_start", "beta_end")  # keys of `diffusion` that `trained_betas` replaces

DIFFUSION_DEFAULTS = Diffusion(
    timesteps=1000,
    schedule="linear",
    beta_start=1e-4,
    beta_end=2e-2,
    prediction="epsilon",
    rescale_betas_zero_snr=False,
    set_alpha_to_one=True,
)

EDM_DEFAULTS = Diffusion(
    prediction="edm",
    rescale_betas_zero_snr=False,
    set_alpha_to_one=True,
    process="edm",
    sigma_min=0.002,
    sigma_max=80.0,
    rho=7.0,
    sigma_data=0.5,
)
"""The same for `process: edm`: those of Karras et al. 2022."""

CONSISTENCY_DEFAULTS = EDM_DEFAULTS.model_copy(update={"timesteps": 40, "prediction": "consistency"})
"""The same for consistency models: those of diffusers' CMStochasticIterativeScheduler."""

FLOW_DEFAULTS = Diffusion(
    timesteps=1,
    prediction="velocity",
    rescale_betas_zero_snr=False,
    set_alpha_to_one=True,
    process="flow",
)
"""The same for `process: flow`."""
