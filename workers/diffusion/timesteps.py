"""The sub-sequences tau of 1..T that a sampler visits, in integers."""


def tau(spacing: str, steps: int, timesteps: int) -> tuple[int, ...]:
    """The S = `steps` times that are visited out of 1..T (T = `timesteps`), increasing and ending at T.

    Appendix D.2 of the DDIM paper, floor(c i) and floor(c i^2), in integers and with c such that tau_S = T exactly.
    As printed the quadratic one can start with zeros; the lower bound i makes its values distinct and positive.

    Raises:
        ValueError: unless 1 <= S <= T, and for an unknown spacing.
    """
    S, T = steps, timesteps
    if not 1 <= S <= T:
        raise ValueError(f"{S} sampling steps can't be chosen out of {T} time steps; steps must be in 1..{T}")
    if spacing == "linear":
        return tuple(T * i // S for i in range(1, S + 1))
    if spacing == "quadratic":
        return tuple(max(i, T * i * i // (S * S)) for i in range(1, S + 1))
    raise ValueError(f"unknown spacing {spacing!r}; known: linear, quadratic")
