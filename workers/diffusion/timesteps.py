"""The times tau in 1..T that a sampler visits: DDIM's, diffusers', ermongroup's, DPM-Solver's, EDM's, or a list."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SPACINGS = ("linear", "quadratic", "leading", "trailing", "linspace", "ermongroup-uniform", "ermongroup-quad")
"""The names that `tau` knows."""

FRACTIONAL = ("logsnr", "logsnr-int", "karras", "time_uniform")
"""Spacings that only `times` knows: most of their times are not whole, and some depend on the betas."""

RHO = 7.0
"""Of `karras`: Karras et al. 2022, table 1."""

TICKS = 2.0**20
"""Fractional times are multiples of 1 / TICKS: CPUs whose logarithms differ in the last bit then visit the same."""


def times(
    spacing: str | Sequence[int], steps: int, alpha_bar: NDArray[np.float64], steps_offset: int = 0
) -> tuple[int, ...] | tuple[float, ...]:
    """The S = `steps` times to visit of the process with these `alpha_bar`, (T + 1,): increasing, in 1..T.

    - `logsnr`: uniform in log(alpha / sigma) from 1 to T, as in DPM-Solver (Lu et al. 2022, section 3.3), to the
      nearest 2^-20. T alone for S = 1.
    - `logsnr-int`: those rounded to integers, halves to even. Some can be equal if S is large.
    - `karras`: between the same ends, uniform in (sigma / alpha)^(1/7) (Karras et al. 2022, eq. 5).
    - `time_uniform`: T / S, 2 T / S, ..., T.
    - all others are `tau`.

    `ValueError` as of `tau`; for log-SNR spacings if alpha is 0 at T.
    """
    T = len(alpha_bar) - 1
    if spacing == "time_uniform" and 1 <= steps <= T:
        return tuple(round(T * i / steps * TICKS) / TICKS for i in range(1, steps + 1))
    if spacing not in FRACTIONAL or not 1 <= steps <= T:
        return tau(spacing, steps, T, steps_offset)
    levels = alpha_bar[1:]
    if levels[-1] == 0:
        raise ValueError(f"spacing {spacing} needs signal at T, but alpha_T is 0 here; choose another spacing")
    log_snr = np.log(levels / (1 - levels)) / 2
    if spacing == "karras":
        roots = np.exp(-log_snr / RHO)
        wanted = -RHO * np.log(np.linspace(roots[-1], roots[0], steps))[1:-1]
    else:
        wanted = np.linspace(log_snr[-1], log_snr[0], steps)[1:-1]
    log_alpha = -np.log1p(np.exp(-2 * wanted)) / 2  # linear in t between two integers
    inner = np.round(np.interp(-log_alpha, -np.log(levels) / 2, np.arange(1, T + 1)) * TICKS) / TICKS
    every = [1, *sorted(inner.tolist()), T] if steps > 1 else [T]
    return tuple(map(round, every)) if spacing == "logsnr-int" else tuple(every)


def tau(spacing: str | Sequence[int], steps: int, timesteps: int, steps_offset: int = 0) -> tuple[int, ...]:
    """The times out of 1..T (T = `timesteps`) to visit, increasing: S = `steps` of them, except for ermongroup's.

    - `linear`, `quadratic`: appendix D.2 of the DDIM paper, floor(c i) and floor(c i^2), in integers, with c such that
      tau_S = T exactly. As printed, `quadratic` can start with zeros; the lower bound i makes its values distinct and
      positive.
    - `leading`, `trailing`, `linspace`: `timestep_spacing` of diffusers' DDIMScheduler and DDPMScheduler. `trailing`
      and, for S > 1, `linspace` end at T. `leading` starts at 1 + `steps_offset`, which the others ignore.
    - `ermongroup-uniform`, `ermongroup-quad`: `skip_type` of the DDIM authors' released code, verbatim. The first can
      have more than S entries; the second ends near 0.8 T and can visit a time more than once. See `remarks`.
    - a sequence: those times themselves.

    Raises:
        ValueError: unless 1 <= S <= T; for an unknown spacing; for a sequence that isn't S increasing times in 1..T;
            for an offset that leads beyond T.
    """
    S, T = steps, timesteps
    if not 1 <= S <= T:
        raise ValueError(f"{S} sampling steps can't be chosen from {T} time steps; steps must be in 1..{T}")
    if not isinstance(spacing, str):
        if len(spacing) != S:
            raise ValueError(f"the spacing lists {len(spacing)} times but steps is {S}; set steps to {len(spacing)}")
        if outside := [t for t in spacing if not 1 <= t <= T]:
            raise ValueError(f"the spacing lists time {outside[0]}; times must be in 1..{T}")
        for before, after in pairwise(spacing):
            if after <= before:
                raise ValueError(f"the spacing lists {before} before {after}; list each time once, in increasing order")
        return tuple(spacing)
    if spacing == "linear":
        return tuple(T * i // S for i in range(1, S + 1))
    if spacing == "quadratic":
        return tuple(max(i, T * i * i // (S * S)) for i in range(1, S + 1))
    if spacing == "leading":
        found = tuple(1 + i * (T // S) + steps_offset for i in range(S))
        if found[-1] > T:
            raise ValueError(f"steps_offset {steps_offset} leads beyond T = {T} for {S} steps of spacing leading")
        return found
    if spacing == "trailing":
        # Halves are rounded as diffusers' `np.round(np.arange(T, 0, -T / S))` happens to: the stride has the rounding
        # error of `arange`. For some S, such as 61 with T = 1000, that has an entry too many near 0; not so here.
        stride = T - (T - T / S)
        return tuple(round(T - i * stride) for i in reversed(range(S)))
    if spacing == "linspace":
        return tuple(1 + t for t in np.linspace(0, T - 1, S).round().astype(np.int64).tolist())
    if spacing == "ermongroup-uniform":
        return tuple(range(1, T + 1, T // S))
    if spacing == "ermongroup-quad":
        return tuple(1 + int(s) for s in np.linspace(0, np.sqrt(T * 0.8), S) ** 2)
    raise ValueError(f"unknown spacing {spacing!r}; known: {', '.join(SPACINGS)}, or a list of times")


def remarks(
    spacing: str | Sequence[int], steps: int, tau: Sequence[float], evaluations: int | None = None
) -> list[str]:
    """Surprises in the `tau` chosen for `steps` steps that the user should know about, one line each. `evaluations` are
    those of an image; None: one for each time."""
    calls = len(tau) if evaluations is None else evaluations
    lines, ends = [], f", not {steps}" if calls == len(tau) else ""
    if len(tau) != steps:
        lines.append(
            f"spacing {spacing} gives {len(tau)} time steps for steps {steps}: "
            f"{calls} network evaluations for each image{ends}"
        )
    different = len(set(tau))
    if different != len(tau):
        lines.append(
            f"spacing {spacing} repeats times for steps {steps}: "
            f"{calls} network evaluations for each image, at {different} different times"
        )
    return lines
