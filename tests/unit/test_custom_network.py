"""`model.callable`: the network is tried and identified by its content, and mistakes are reported in one line."""

import json
import shlex
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from denoisers import at
from snapshots import raises, recorded

from taugrid import parquet
from taugrid.config import DIFFUSION_DEFAULTS, Config, validate
from taugrid.errors import CustomCodeError, UserError, WorkerRefusal
from taugrid.hashing import file_sha256
from taugrid.jobs import CustomNetwork
from taugrid.orchestrator.plan.grid import Lookups, plan
from taugrid.orchestrator.plan.sources import Custom
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.orchestrator.rundir.extension import orphans_in_words
from taugrid.orchestrator.rundir.listing import Listing
from taugrid.orchestrator.view.verify import verify
from taugrid.storage import write_json
from taugrid.workers.custom import describe as custom_code
from taugrid.workers.custom.source import source_of, tensors_sha256
from taugrid.workers.device import Device
from taugrid.workers.jobs import SampleJob
from taugrid.workers.network import custom_process
from taugrid.workers.network.custom import checked, describe, for_inference, load, make, tensors
from taugrid.workers.network.load import load_network
from taugrid.workers.sample import sample_shard

pytestmark = pytest.mark.usefixtures("one_thread")

SOURCE = """
from collections import namedtuple
import torch
from torch import nn

class Scaled(nn.Module):
    def __init__(self, scale=0.5):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.times = nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.times.weight, 0.001)
        self.dropout = nn.Dropout(0.5)
    def forward(self, x, t):
        return self.dropout(self.scale * x + self.times(t[:, None].float())[..., None, None])

def scaled(weights=None):
    network = Scaled()
    if weights is not None:
        network.load_state_dict(torch.load(weights, weights_only=True))
    return network

def needs_weights(weights):
    return scaled(weights)

def plain():
    network = Scaled().eval()
    return lambda x, t: network(x, t)

def gradient():
    def network(x, t):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            return torch.autograd.grad((x**2).sum() / 2, x)[0]
    return network

def returning(change):
    return lambda: lambda x, t: change(x, t)

def failing():
    raise OSError("no such thing\\nin two lines")

def failing_network():
    def network(x, t):
        raise RuntimeError("shapes cannot be multiplied")
    return network

def norm():
    norm = nn.BatchNorm2d(1)
    return lambda x, t: norm(x)

class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(8, 8)
    def forward(self, x, t):
        return self.mix(x)

def seeded():
    torch.manual_seed(0)
    return Random()

def random_buffer():
    network = Scaled()
    network.register_buffer("table", torch.randn(8, 8), persistent=False)
    network.forward = lambda x, t: network.table * x
    return network

def few_times():
    times = nn.Embedding(100, 1)
    return lambda x, t: x + times(t)[..., None, None]

def embedding():
    torch.manual_seed(0)
    return few_times()

MODULE = Scaled()
Output = namedtuple("Output", "sample")
finds = lambda: scaled("found.pt")
double = returning(lambda x, t: x.double())
truncating = returning(lambda x, t: x + t.long()[:, None, None, None])
tuple_ = returning(lambda x, t: (x, t))
output = returning(lambda x, t: Output(x))
shape = returning(lambda x, t: x[:, :, 1:])
variance = returning(lambda x, t: torch.cat([x, x], dim=1))
half = returning(lambda x, t: x.half())
integer = returning(lambda x, t: x.long())
nan = returning(lambda x, t: x / 0 * 0)
overwritten = returning(lambda x, t: x.mul_(0.5))
one_time = returning(lambda x, t: x + t[0])
dropout = returning(lambda x, t: nn.functional.dropout(x))
nothing = lambda: None
class_ = lambda: Scaled
"""

SHAPE = (1, 8, 8)
DDPM = DIFFUSION_DEFAULTS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a module of the user's in it."""
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget()


def forget():
    """A machine that has not imported the user's modules."""
    import importlib

    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "helper")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def described(name, weights=None, shape=SHAPE, diffusion=DDPM, data=None):
    """`custom_process.describe` without the seconds that another process takes."""
    path = None if weights is None else str(custom_process.weights_path(weights))
    return describe(name, path, shape, diffusion.model_dump(mode="json"), data and data.model_dump(mode="json"))


def save_weights(path, scale):
    torch.save({"scale": torch.tensor(scale), "times.weight": torch.zeros(1, 1)}, path)
    return path


def planned(describe_network=described, **sections):
    values = {"name": "x", "model": {"callable": "mine:scaled"}, "sample": {"num_samples": 4, "seed": 0}} | sections
    return plan(validate(Config, values, "test"), Lookups(describe_network=describe_network))


def test_what_needs_a_module_is_refused_of_a_function_before_a_worker_starts(folder):
    sample = {"seed": 0, "precision": "bf16-weights"}
    planned(sample=sample)
    with raises(UserError):
        planned(model={"callable": "mine:plain"}, sample=sample)


@pytest.mark.long
def test_another_process_tries_the_network(folder):
    weights = save_weights(folder / "scale.pt", 0.25)
    found = custom_process.describe("mine:scaled", "scale.pt", SHAPE, DDPM)
    assert found == described("mine:scaled", weights)
    assert found.weights_sha256 == file_sha256(weights)
    assert found.summary == "Scaled, 2 parameters"


@pytest.mark.long
def test_the_command_in_an_error_shows_the_whole_traceback(folder):
    with pytest.raises(UserError) as error:
        custom_process.describe("mine:failing", None, SHAPE, DDPM)
    line, command = str(error.value).split("\nfor the traceback, run: ")
    recorded(line)
    done = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert 'mine.py", line' in done.stderr
    recorded("\n".join(done.stderr.splitlines()[-3:]))


def test_a_network_that_does_not_come_to_an_end_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(custom_code, "TIMEOUT_SECONDS", 0.2)
    with raises(UserError):
        custom_process.describe("mine:scaled", None, SHAPE, DDPM)


UNUSABLE = (
    "tuple_ output shape variance half integer nan overwritten one_time few_times norm dropout Random "
    "random_buffer nothing class_ MODULE scaledd needs_weights"
)


@pytest.mark.parametrize("name", UNUSABLE.split())
def test_a_network_that_can_not_be_used_is_refused(folder, name):
    with raises(CustomCodeError):
        describe(f"mine:{name}", None, SHAPE, DDPM)


def test_what_can_not_be_imported_or_made_is_told_from_the_users_own_errors(folder):
    with raises(CustomCodeError):
        describe("mien:scaled", None, SHAPE, DDPM)
    with raises(CustomCodeError):
        make("mine:plain", "some.pt")
    with raises(UserError):
        custom_process.describe("mine:scaled", "absent.pt", SHAPE, DDPM)
    with raises(CustomCodeError):
        describe("mine:failing_network", None, SHAPE, DDPM)
    rewrite(folder, "import no_such_library\n")
    with raises(ModuleNotFoundError):
        describe("mine:scaled", None, SHAPE, DDPM)


def test_weights_with_code_in_them_are_not_opened_and_torchs_advice_to_do_so_is_not_repeated(folder):
    path = folder / "module.pt"
    torch.save({"ema": torch.nn.Linear(1, 1)}, path)
    (folder / "mine.py").write_text(f"{SOURCE}\ndef of_its_own():\n    return scaled('module.pt')\n")
    for name, weights in (("scaled", str(path)), ("of_its_own", None)):
        with raises(CustomCodeError) as error:
            describe(f"mine:{name}", weights, SHAPE, DDPM)
        assert "weights_only" not in str(error.value)


def test_random_weights_that_are_seeded_are_the_same_everywhere(folder):
    found = described("mine:seeded")
    assert found == described("mine:seeded")
    load(found, "cpu")


def test_a_module_is_set_to_inference_and_asked_at_the_index_before_t(folder):
    """Dropout is off, and the paper's t = 7 has the index 6 that DDPM networks are trained with."""
    network = load_network(described("mine:scaled"), DIFFUSION_DEFAULTS, "cpu")
    x = torch.randn(3, *SHAPE)
    output = network(x, at(7))
    assert torch.allclose(output, 0.5 * x + 0.006)
    assert output.is_inference()


def test_plain_functions_are_left_alone(folder):
    x = torch.randn(3, *SHAPE)
    plain = load_network(described("mine:plain"), DIFFUSION_DEFAULTS, "cpu")
    assert torch.allclose(plain(x, at(7)), 0.5 * x + 0.006)
    double = load_network(described("mine:double"), DIFFUSION_DEFAULTS, "cpu")(x, at(7))
    assert double.dtype == torch.float32
    gradient = load_network(described("mine:gradient"), DIFFUSION_DEFAULTS, "cpu")
    with torch.no_grad():  # as the sampler does
        assert torch.allclose(gradient(x, at(7)), x)


def test_a_wrong_output_at_work_is_said_in_one_line():
    x = torch.zeros(5, 3, 4, 4)
    network = for_inference(lambda x, t: x[:1], "mine:late", "cpu")
    with raises(CustomCodeError):
        network(x, torch.zeros(5, dtype=torch.int64))
    with raises(CustomCodeError):
        checked(x.to("meta"), x, "mine:late")


def test_other_source_weights_or_tensors_where_the_work_is_done_are_refused(folder):
    def refused(found):
        with raises(WorkerRefusal):
            load(found, "cpu")

    found = described("mine:scaled", save_weights(folder / "scale.pt", 0.25))
    assert load(found, "cpu")(torch.ones(1, *SHAPE), at(0)).unique().tolist() == [0.25]
    save_weights(folder / "scale.pt", 0.5)
    refused(found)
    (folder / "scale.pt").unlink()
    refused(found)
    save_weights(folder / "found.pt", 0.25)
    found = described("mine:finds")
    save_weights(folder / "found.pt", 0.5)
    refused(found)
    save_weights(folder / "found.pt", 0.25)
    rewrite(folder, "# a comment\n" + SOURCE)
    load(found, "cpu")
    rewrite(folder, SOURCE + "\nCHANGED = 1\n")
    refused(found)


def rewrite(folder, text, name="mine"):
    """Change a module of the user's, on a machine that has not imported it."""
    (folder / f"{name}.py").write_text(text)
    forget()


class Holder:
    """An object that holds a network, and gives it as itself or as a method."""

    def __init__(self):
        self.network = torch.nn.Linear(2, 1, bias=False)

    def __call__(self, x, t):
        return self.network(x)


def test_tensors_that_a_plain_function_holds_are_found():
    holder, table = Holder(), torch.zeros(3)
    assert set(tensors(holder)) == set(tensors(holder.__call__)) == {"network.weight"}
    network = holder.network
    assert set(tensors(lambda x, t: network(x) + table)) == {"network.weight", "table"}
    assert set(tensors(network)) == set(tensors(network.forward).keys() - {"self.weight"}) | {"weight"}
    assert tensors(lambda x, t: x) == {}


def test_identity_is_the_content_and_no_path(folder):
    one = save_weights(folder / "one.pt", 0.25)
    (folder / "elsewhere").mkdir()
    same, other = save_weights(folder / "elsewhere" / "same.pt", 0.25), save_weights(folder / "other.pt", 0.5)
    same.write_bytes(one.read_bytes())

    def model_id(weights=None, name="mine:scaled", **sections):
        model = {"callable": name} | ({} if weights is None else {"weights": str(weights)})
        return planned(model=model, **sections).models[0].id

    first = model_id(one)
    assert model_id(same) == first
    assert model_id(one, data={"name": "digits", "split": "test"}) == first, "it was not trained here"
    assert model_id(one, diffusion={"timesteps": 1000}) == first, "the default said aloud"
    different = [
        model_id(other),
        model_id(),
        model_id(one, name="mine:needs_weights"),
        model_id(one, diffusion={"timesteps": 500}),
        model_id(one, diffusion={"prediction": "sample"}),
        model_id(one, data={"name": "fashion-mnist"}),
    ]
    assert len({first, *different}) == 1 + len(different)
    rewrite(folder, "from helper import SCALE\n" + SOURCE)
    rewrite(folder, "SCALE = 1\n", "helper")
    changed = model_id(one)
    rewrite(folder, "SCALE = 2\n", "helper")
    assert len({first, changed, model_id(one)}) == 3


MORE = """
def held():
    network = finds().eval()
    return lambda x, t: network(x, t)

def with_settings():
    network = Scaled()
    network.register_buffer("factor", torch.tensor(float(open("scale.txt").read())))
    print("made", end="")
    return network
"""


@pytest.mark.parametrize("name", ["finds", "held", "with_settings"])
def test_what_the_function_reads_besides_its_file_counts(folder, name):
    (folder / "mine.py").write_text(SOURCE + MORE)

    def found(scale):
        save_weights(folder / "found.pt", scale)
        (folder / "scale.txt").write_text(str(scale))
        return planned(model={"callable": f"mine:{name}"}).models[0].id

    assert found(0.25) == found(0.25) != found(0.5)


def test_the_id_of_a_network_is_pinned():
    """Whoever changes what enters it orphans every run with a custom network."""

    def fixed(name, weights, shape, *_):
        return CustomNetwork(name, weights, "a" * 64, "b" * 64, "c" * 64, shape, "Net, 3 parameters")

    p = planned(fixed, model={"callable": "a.b:c"}, diffusion={"schedule": "cosine"})
    assert [(model.id, model.image_shape) for model in p.models] == [("203c3fd23f", SHAPE)]


def test_the_hashes_of_code_and_tensors_are_pinned(folder):
    """They enter the id."""
    (folder / "mine.py").write_text("import torch, helper\nnetwork = lambda: torch.nn.Conv2d(1, 1, 1)\n")
    (folder / "helper.py").write_text("SCALE = 1\n")
    found = source_of(["mine"])
    assert found.sha256 == "25644743fb92c6345aaf5358073ef0ba83adbc64551703797550a84812a5b809"
    assert "mine" not in sys.modules, "its code has not run"
    held = {"a": torch.arange(3.0), "b": torch.ones(2, 1, dtype=torch.int8), "c": 3}
    assert tensors_sha256(held) == "616c0d8e9ac12987ef5b9a7ef86ede77dd4268eae7e16ed0abc249d2548f6a2d"


def test_raw_weights_are_refused(folder):
    with raises(UserError):
        planned(sample={"weights": "raw", "seed": 0})


def sample(p, rundir):
    """Sample a plan's one cell as a worker does."""
    [cell] = p.cells
    [shard] = cell.shards
    network, path = rundir.network(cell.model, "ema"), rundir.sample_part(cell, shard)
    job = SampleJob(
        str(path), shard.start, shard.stop, network, cell.model.decoder, cell.settings,
        cell.model.diffusion, cell.tau, cell.nfe, rundir.sample_metadata(cell),
    )  # fmt: skip
    sample_shard(job, load_network(network, cell.model.diffusion, "cpu"), Device("cpu"))
    return path


@pytest.mark.long
@pytest.mark.parametrize("spacing", ["logsnr", "karras", "time_uniform"])
@pytest.mark.parametrize(("name", "takes"), [("scaled", True), ("embedding", False), ("truncating", False)])
def test_times_between_whole_ones_are_tried(folder, name, takes, spacing):
    """An embedding of integers fails there, and a network that rounds would sample something else in silence."""
    sections = {"model": {"callable": f"mine:{name}"}, "diffusion": {"timesteps": 100}}
    settings = {"num_samples": 4, "seed": 0, "steps": 7}
    assert described(f"mine:{name}", diffusion=DDPM.model_copy(update={"timesteps": 100})).takes_fractions is takes
    assert planned(**sections, sample=settings | {"spacing": "logsnr-int"})
    with nullcontext() if takes else raises(UserError):
        planned(**sections, sample=settings | {"spacing": spacing})


SCALED = {"callable": "mine:scaled", "weights": "scale.pt"}


@pytest.fixture
def rundir(folder):
    """A run directory, and `SCALED`'s weights beside it."""
    save_weights(folder / "scale.pt", 0.25)
    found = RunDir(folder / "run")
    found.root.mkdir()
    return found


def test_weights_that_were_replaced_after_sampling_are_refused(folder, rundir):
    weights = folder / "scale.pt"
    p = planned(model=SCALED, sample={"num_samples": 4, "steps": 2, "seed": 0})
    path = sample(p, rundir)
    [cell] = p.cells

    def sampled():
        return rundir.sampled(cell, rundir.sample_metadata(cell), True, pytest.fail, Listing(rundir))

    assert parquet.inspect(path).metadata["weights_sha256"] == file_sha256(weights)
    assert sampled() == {0}
    save_weights(weights, 0.5)
    with raises(UserError):
        sampled()
    run = Run(validate(Config, {"name": "x", "model": SCALED}, "test"), p, rundir)
    found = verify(run, lambda count: None).damages
    [fix] = [damage.fix for damage in found if damage.path == weights]
    recorded(fix, "restore")
    weights.unlink()
    with raises(UserError):
        rundir.sample_metadata(cell)
    assert rundir.weights_file(cell.model, "ema") == weights


def test_a_run_can_be_looked_at_when_its_weights_are_gone(folder, rundir):
    """It is as recorded, but nothing can be run with it."""
    [before] = planned(model=SCALED).models
    rundir.record_model(before)
    record = (rundir.models / before.id / "model.json").read_text()
    (folder / "scale.pt").unlink()
    [after] = planned(rundir.describe_network, model=SCALED).models
    assert (after.id, after.image_shape) == (before.id, SHAPE)
    assert isinstance(after.source, Custom)
    assert replace(after.source.spec, unusable=None) == before.source.spec
    with raises(UserError):
        rundir.network(after, "ema")
    rundir.record_model(after)
    assert (rundir.models / before.id / "model.json").read_text() == record
    assert json.loads(record) == json.loads(json.dumps(before.source.spec.recorded))
    with raises(UserError):
        planned(rundir.describe_network, model=SCALED, data={"name": "fashion-mnist"})


def test_another_source_is_refused_and_another_comment_is_not(folder, rundir):
    (folder / "mine.py").write_text("from helper import SCALE\n" + SOURCE)
    (folder / "helper.py").write_text("SCALE = 1\n")
    config = validate(Config, {"name": "x", "model": {"callable": "mine:scaled"}}, "test")
    p = plan(config, Lookups(describe_network=described))
    rundir.record_model(p.models[0])
    path = rundir.sample_part(p.cells[0], p.cells[0].shards[0])
    path.parent.mkdir(parents=True)
    path.touch()
    rewrite(folder, "# a comment\nSCALE = 1\n", "helper")
    assert orphans_in_words(config, plan(config, Lookups(describe_network=described)), rundir) is None
    rewrite(folder, "SCALE = 2\n", "helper")
    write_json(rundir.config, config.model_dump(mode="json"))
    said = orphans_in_words(config, plan(config, Lookups(describe_network=described)), rundir)
    assert "custom code" in said
