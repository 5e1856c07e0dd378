"""Cases that only `make proofs` runs."""

from itertools import product

import pytest


def proof(*values):
    """A case of `make proofs` alone."""
    return pytest.param(*values, marks=[pytest.mark.proof, pytest.mark.slow])


def cases(few, *factors):
    """The product of the factors, of which all but a few are proofs."""
    return [case if case in few else proof(*case) for case in product(*factors)]
