import gc
import importlib
import sys

import diffusers
import pytest

import taugrid.workers.network.unet  # noqa: F401  # it leaves parts of SciPy out
from taugrid.workers.importing import imported_on_use, uncollected

MODULE = "xml.sax.saxutils"  # nothing here imports it


def test_a_module_is_loaded_with_the_first_thing_asked_of_it_and_not_before(monkeypatch):
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with imported_on_use(MODULE):
        importlib.import_module(MODULE)
    assert MODULE not in sys.modules
    with imported_on_use(MODULE):
        stand_in = importlib.import_module(MODULE)
        assert stand_in.escape("<") == "&lt;"
    assert sys.modules[MODULE].escape is stand_in.escape
    with pytest.raises(AttributeError, match="no_such_name"):
        stand_in.no_such_name  # noqa: B018
    with imported_on_use("json"):  # which is loaded
        assert importlib.import_module("json") is sys.modules["json"]
    assert sys.modules["json"].loads("1") == 1


def test_the_collector_is_off_within_and_back_after_an_error():
    def fail():
        assert not gc.isenabled()
        raise ImportError

    with pytest.raises(ImportError), uncollected():
        fail()
    assert gc.isenabled()


def test_schedulers_that_need_scipy_have_it():
    """They were imported while `scipy.stats` and `scipy.integrate` were left out."""
    multistep = diffusers.DPMSolverMultistepScheduler(use_beta_sigmas=True)
    multistep.set_timesteps(4)
    assert multistep.sigmas.isfinite().all()
    linear = diffusers.LMSDiscreteScheduler()
    linear.set_timesteps(4)
    assert linear.get_lms_coefficient(2, 2, 0) < 0
