"""The mathematics of DDIM (Song et al. 2021) as pure functions; equation numbers are the paper's."""
