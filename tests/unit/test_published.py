"""The paper's numbers beside a run's, and what is said to differ: of nothing, and of each thing alone."""

from dataclasses import asdict

import pandas as pd
import pytest
from snapshots import recorded

from taugrid.config import Config, Data, validate
from taugrid.eval.reference import Reference
from taugrid.eval.sources import ImageSet
from taugrid.eval.tables.differences import Evidence
from taugrid.eval.tables.long_form import COLUMNS
from taugrid.eval.tables.published.counterparts import (
    SOURCE_TIME,
    EncodedImages,
    NetworkOrigin,
    dataset_facts,
    published_markdown,
    quality_counterparts,
    reconstruction_counterparts,
    write_published,
)
from taugrid.orchestrator.plan.grid import plan
from taugrid.orchestrator.report.collect import Rows
from taugrid.orchestrator.report.write import network_origin, write_report
from taugrid.orchestrator.run import Run
from taugrid.orchestrator.rundir.directory import RunDir
from taugrid.workers.diffusion.timesteps import tau

INCEPTION = {
    "name": "inception-v3-compat",
    "weights_sha256": "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49",
}
CIFAR10 = {
    "dataset": "cifar10",
    "split": "train",
    "num_images": 50_000,
    "preprocessing": "8 bits, 3x32x32",
    "sha256": "ab" * 32,
}
LSUN = {"dataset": "lsun/bedroom", "split": "train", "num_images": 3_033_042, "preprocessing": "8 bits, 3x256x256"}
OF_THE_AUTHORS = NetworkOrigin("google/ddpm-cifar10-32", None)
BEDROOM = NetworkOrigin("google/ddpm-ema-bedroom-256", None)
MAY_NOT_BE_EMA = "weights that may not be averaged ones (EMA): the card of google/ddpm-cifar10-32 does not say"
TEST_SET = {"spacing": "linear", "num_images": 10_000, "weights": "ema", "model": "m", "mse_se": None}


def row(steps=100, eta=0.0, fid=4.3, **others):
    sigma = "sigma_hat" if eta == "sigma_hat" else "eta"
    found = dict.fromkeys(COLUMNS) | {"cell": f"{steps}-{eta}", "model": "m", "sampler": "ddim"}
    found |= {"steps": steps, "sigma": sigma, "eta": 1.0 if eta == "sigma_hat" else eta, "spacing": "quadratic"}
    return found | {"clip": "none", "num_samples": 50_000, "fid": fid, "fid_se": 0.02, "protocol": "p"} | others


def protocol(steps=100, spacing="quadratic", reference=CIFAR10, **others):
    found = {"reference": reference, "num_samples": 50_000, "weights": "ema", "tau": list(tau(spacing, steps, 1000))}
    return found | {"clip": "none", "extractor": INCEPTION} | others


def beside(ours, of, network=OF_THE_AUTHORS):
    return quality_counterparts([ours], {"p": of}, {"m": network})


def differing(ours, of, network=OF_THE_AUTHORS):
    """All that differs, but for what always does of `OF_THE_AUTHORS`."""
    [found] = beside(ours, of, network)
    always = [MAY_NOT_BE_EMA] if network.source == OF_THE_AUTHORS.source else []
    assert [text for text in found.differs if text == MAY_NOT_BE_EMA] == always
    return [text for text in found.differs if text != MAY_NOT_BE_EMA]


def test_nothing_is_said_to_differ_where_all_that_is_known_agrees():
    [found] = beside(row(), protocol())
    assert (found.table, found.published, found.ours, found.standard_error) == ("1", "4.16", 4.3, 0.02)
    assert found.difference == pytest.approx(0.14)
    assert found.differs == (MAY_NOT_BE_EMA,), "and what is not known of the hub's copy"
    assert "4.26" in found.note, "the author's own rerun belongs beside it"
    [at_main] = beside(row(), protocol(), NetworkOrigin("google/ddpm-cifar10-32@main", None))
    assert at_main.differs == (MAY_NOT_BE_EMA,)
    assert differing(row(1000, spacing="linear"), protocol(1000, "linear")) == [], "at S = T all spacings are one"


OTHER_WEIGHTS = {"name": "inception-v3-compat", "weights_sha256": "0" * 64}
CONVNET = {"name": "fashion-convnet", "weights_sha256": "6726825d"}


@pytest.mark.parametrize(
    ("ours", "of", "network"),
    [
        (row(spacing="linear"), protocol(spacing="linear"), None),
        (row(spacing="ermongroup-quad"), protocol(spacing="ermongroup-quad"), None),
        (row(10, spacing="1,2,3,4,5,6,7,8,9,10"), protocol(10, tau=list(range(1, 11))), None),
        (row(), protocol(clip="x0"), None),
        (row(eta="sigma_hat"), protocol(clip="none"), None),
        (row(), protocol(num_samples=1_000), None),
        (row(), protocol(extractor=CONVNET), None),
        (row(), protocol(extractor=OTHER_WEIGHTS), None),
        (row(), protocol(reference=CIFAR10 | {"num_images": 10_000}), None),
        (row(), protocol(reference=CIFAR10 | {"preprocessing": "8 bits, 3x64x64"}), None),
        (row(), protocol(reference=CIFAR10 | {"split": "test"}), None),
        (row(), protocol(weights="raw"), None),
        (row(), protocol(), NetworkOrigin("trained here", None)),
        (row(), protocol(), NetworkOrigin("google/ddpm-cifar10-32", "cosine betas, T = 1000")),
    ],
)
def test_each_thing_that_differs_is_said_and_nothing_else(ours, of, network):
    [said] = differing(ours, of, network or OF_THE_AUTHORS)
    recorded(said)


@pytest.mark.parametrize(
    ("dataset", "images"), [("celeba", 162_770), ("lsun/bedroom", 3_033_042), ("lsun/church_outdoor", 126_227)]
)
def test_a_chosen_part_of_the_training_set_as_reference_is_said(dataset, images):
    of = LSUN | {"dataset": dataset, "preprocessing": "8 bits, 3x64x64" if dataset == "celeba" else "8 bits, 3x256x256"}
    ours, network = row(spacing="linear"), NetworkOrigin(dataset_facts(dataset)["checkpoint"], None)
    part = protocol(100, "linear", of | {"num_images": 50_000})
    recorded("\n".join(differing(ours, part, network)))
    assert differing(ours, protocol(100, "linear", of | {"num_images": images}), network) == []


@pytest.mark.parametrize(
    "ours",
    [row(30), row(eta=0.3), row(sampler="dpm-solver"), row(fid=None), row(fid=float("nan")), row(500, "sigma_hat")],
    ids=["S", "eta", "sampler", "no FID", "nan", "both"],
)
def test_what_was_not_published_has_no_counterpart(ours):
    assert beside(ours, protocol()) == []
    assert beside(row(), protocol(reference=CIFAR10 | {"dataset": "cifar100"})) == []
    for of in (encoded(split="train"), encoded(dataset="digits")):  # table 2 is of CIFAR-10's test set
        assert reconstruction_counterparts([reconstruction()], [of]) == []


def test_the_ddpm_of_table_3_is_eta_1_with_clipping():
    of = protocol(1000, "linear", LSUN, clip="x0_and_eps")
    [found] = beside(row(1000, 1.0, spacing="linear"), of, BEDROOM)
    assert (found.table, found.published, found.differs) == ("3", "6.36", ())
    assert beside(row(1000, 0.0, spacing="linear"), of, BEDROOM) == []
    assert beside(row(1000, "sigma_hat", spacing="linear"), of, BEDROOM) == []


def test_references_are_known_by_the_names_that_protocols_give_them():
    data = Data(name="lsun", category="church_outdoor", split="train")
    lsun = Reference(ImageSet("dataset", data, 126_227, (3, 256, 256), "0"))
    network = NetworkOrigin("google/ddpm-ema-church-256", None)
    [found] = beside(row(spacing="linear"), protocol(100, "linear", asdict(lsun.identity())), network)
    assert (found.published, found.differs) == ("10.58", ())


def encoded(spacing="linear", steps=100, dataset="cifar10", split="test", network=OF_THE_AUTHORS):
    return EncodedImages(dataset, split, tau(spacing, steps, 1000), network)


def reconstruction(steps=100, mse=0.001, **others):
    return TEST_SET | {"steps": steps, "mse": mse} | others


@pytest.mark.parametrize(
    ("ours", "of"),
    [
        (reconstruction(), encoded()),
        (reconstruction(spacing="quadratic"), encoded("quadratic")),
        (reconstruction(spacing="leading"), encoded("leading")),
        (reconstruction(num_images=1_000), encoded()),
        (reconstruction(weights="raw"), encoded()),
        (reconstruction(), encoded(network=NetworkOrigin("trained here", None))),
    ],
)
def test_table_2_stands_beside_reconstructions(ours, of):
    [found] = reconstruction_counterparts([ours], [of])
    assert (found.table, found.published, found.metric) == ("2", "0.0009", "mse")
    assert found.difference == pytest.approx(0.0001)
    assert SOURCE_TIME in found.differs, "taugrid's own way up always differs from eq. 13"
    assert (MAY_NOT_BE_EMA in found.differs) == (of.network == OF_THE_AUTHORS)
    recorded("\n".join(sorted({*found.differs} - {SOURCE_TIME, MAY_NOT_BE_EMA})))


def mixed():
    """Two cells that share that they were trained here, and of which one has another spacing."""
    rows = [row(100), row(50, fid=4.9, spacing="linear", protocol="q")]
    of = {"p": protocol(num_samples=1_000), "q": protocol(50, "linear", num_samples=1_000)}
    return quality_counterparts(rows, of, {"m": NetworkOrigin("trained | here", None)})


def test_markdown_says_once_what_differs_everywhere():
    text = published_markdown(mixed())
    assert text.count("N = 1,000, not 50,000") == 1
    lines = [line for line in text.splitlines() if line.startswith("|")]
    recorded(lines[0])
    assert lines[2] == "| 0.0 | 100 | 4.16 | 4.300 ± 0.020 | +0.14 | – |"
    recorded(lines[3])
    assert "| 4.67 | 4.900 ± 0.020 | +0.23 |" in lines[3]
    recorded(text, "author")
    recorded(text, "reference")


def test_markdown_says_where_nothing_differs():
    ours, of = row(spacing="linear"), protocol(100, "linear", LSUN)
    text = published_markdown(beside(ours, of, BEDROOM))
    recorded(text, "Nothing")
    assert "Unlike the" not in text
    text = published_markdown(beside(row(), protocol()))
    assert "known differs" not in text
    recorded(text, "Unlike")


def test_cells_at_one_place_are_told_apart_and_a_bar_in_a_path_splits_no_cell():
    rows = [row(cell="a"), row(cell="b", protocol="raw"), row(50, model="n")]
    networks = {"m": OF_THE_AUTHORS, "n": NetworkOrigin("a|b", None)}
    text = published_markdown(quality_counterparts(rows, {"p": protocol(), "raw": protocol(weights="raw")}, networks))
    assert r"network: a\|b" in text
    lines = [line for line in text.splitlines() if line.startswith("| 0.0 | 100")]
    assert [line.split(" | ")[-1] for line in lines] == ["a |", "b |"]


def test_the_csv_has_numbers_and_a_list_in_words(tmp_path):
    write_published(mixed(), tmp_path, "published")
    back = pd.read_csv(tmp_path / "published.csv")
    assert back["published"].tolist() == [4.16, 4.67]
    assert back["difference"].tolist() == pytest.approx([0.14, 0.23])
    recorded(back["differs"][0])


def config_of(**sections):
    model = {"unet": {"block_out_channels": [8], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"],
                      "norm_num_groups": 4}}  # fmt: skip
    values = {"name": "x", "data": {"name": "cifar10", "split": "train"}, "model": model} | sections
    return validate(Config, values | {"train": {"seed": 0}}, "test")


def test_a_report_has_them_and_points_to_them_and_forgets_those_of_another_grid(tmp_path):
    config = config_of(sample={"seed": 0, "spacing": "quadratic", "steps": 100})
    planned, rundir = plan(config), RunDir(tmp_path)
    [cell] = planned.cells
    ours = row(cell=cell.id, model=cell.model.id)
    evidence = Evidence({}, {cell.id: (0, (3, 32, 32))}, {"p": protocol()}, {cell.id: "none"})
    write_report(Run(config, planned, rundir), Rows([ours], [], evidence))
    recorded((rundir.tables / "published.md").read_text(), "network")
    recorded((rundir.tables / "quality.md").read_text(), "numbers")
    write_report(Run(config, planned, rundir), Rows([], [], evidence))
    assert not list(rundir.tables.glob("published.*"))
    assert "published.md" not in (rundir.tables / "quality.md").read_text()


def test_a_model_trained_here_is_said_to_be_with_its_forward_process():
    for diffusion in (
        {},
        {"schedule": "cosine", "timesteps": 500, "set_alpha_to_one": False},
        {"rescale_betas_zero_snr": True, "prediction": "sample"},
    ):
        [model] = plan(config_of(diffusion=diffusion)).models
        source, process, kind = network_origin(model)
        assert (source, kind) == ("trained here", "ddpm")
        recorded(str(process))
