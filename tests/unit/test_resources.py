"""How many workers fit on a cluster."""

from contextlib import suppress

import pytest
from snapshots import raises

from taugrid.config import Cluster, Config, validate
from taugrid.errors import RunFailed, UserError
from taugrid.orchestrator.dispatch import capacity, cluster
from taugrid.orchestrator.dispatch.capacity import Node, Size, selects


def test_as_many_workers_fit_as_by_hand():
    """In floats, 1 // 0.2 is 4. Shares of GPUs are exact, and never span two."""
    for node, cpus, fit in ((1, 0.2, 5), (3, 0.3, 10), (0.6, 0.2, 3), (2, 0.7, 2), (0.5, 1, 0), (16, 1, 16)):
        assert Node("a", node, 0).capacity(Size(cpus, 0)) == fit
        assert Node("b", node, 1.0).capacity(Size(cpus, 0.2)) == min(fit, 5)
    for gpus, each, fit in ((1, 1 / 3, 3), (1, 1 / 6, 6), (2, 0.4, 4), (8, 0.6, 8), (8, 3, 2), (0, 0.2, 0)):
        assert Node("a", 64, gpus).capacity(Size(1, each)) == fit


def test_an_embedded_cluster_is_as_large_as_the_workers_need(monkeypatch):
    own, asked = capacity.available_cpus(), []
    monkeypatch.setattr("ray.init", lambda **options: asked.append(options["num_cpus"]) or 1 / 0)
    for workers in (10 * own, 10 * own + 1):
        with suppress(ZeroDivisionError, RunFailed):
            cluster.connected("local", Cluster(workers=workers, cpus_per_worker=0.1)).__enter__()
    assert asked == [own, own + 1]


def test_a_label_selector_takes_what_ray_takes():
    labels = {"x": {"type": "A100"}, "y": {"type": "H100"}, "z": {"other": "A100"}}
    for condition, taken in {"A100": "x", "!A100": "yz", "in(A100, H100)": "xy", "!in(A100,H100)": "z"}.items():
        assert [name for name, own in labels.items() if selects({"type": condition}, own)] == list(taken)
    assert selects({}, {})


def four_nodes(monkeypatch, usable=True):
    """Two nodes with GPUs, of which one drains, and two without."""
    found = [Node("g", 8, 2), Node("h", 8, 1, draining=True), Node("c", 4, 0), Node("d", 2, 0)]
    monkeypatch.setattr(capacity, "nodes", lambda selector=None: found)
    asked = []
    monkeypatch.setattr(capacity, "torch_uses_gpus", lambda ids: asked.append(set(ids)) or usable)
    return asked


def test_gpus_are_used_where_there_are_any_that_torch_can_use_and_that_stay(monkeypatch):
    asked = four_nodes(monkeypatch)
    assert capacity.worker_size(Cluster()) == (1, 1)
    assert capacity.embedded_workers(Cluster()) == 2
    assert asked == [{"g"}] * 2
    four_nodes(monkeypatch, usable=False)
    assert capacity.worker_size(Cluster()) == (1, 0)
    assert capacity.embedded_workers(Cluster()) == 8 + 4 + 2
    assert capacity.worker_size(Cluster(gpus_per_worker=1)) == (1, 1), "what the user says holds"


def test_labels_that_no_node_has_are_named(monkeypatch):
    monkeypatch.setattr(capacity, "nodes", lambda selector=None: [] if selector else [Node("a", 8, 1)])
    labels = {"ray.io/accelerator-type": "A100"}
    with raises(UserError):
        capacity.embedded_workers(Cluster(gpus_per_worker=1, label_selector=labels))


def test_that_no_gpu_was_found_is_said(monkeypatch):
    """Patch: `no_capacity` alone, whose advice to lower gpus_per_worker hides that there is none."""
    monkeypatch.setattr(capacity, "nodes", lambda selector=None: [Node("a", 8, 0)])
    for refuse in (capacity.embedded_workers, lambda cluster: capacity.trainers(cluster, 1)):
        with raises(UserError):
            refuse(Cluster(gpus_per_worker=0.5))


@pytest.mark.parametrize(
    ("section", "asked_for", "workers"),
    [
        ({"cpus_per_worker": 9}, 8, (1, 8)),  # none fits
        ({}, 8, (1, 8)),
        ({"cpus_per_worker": 9}, 1, 1),
        ({}, 2, 2),  # all fit
        ({"gpus_per_worker": 0}, 20, (1, 20)),
        ({"gpus_per_worker": 0}, 14, 14),
        ({"gpus_per_worker": 0.6}, 8, 2),  # Ray Train would count 2 // 0.6 = 3
        ({"gpus_per_worker": 0.6, "cpus_per_worker": 9}, 8, 8),
    ],
)
def test_a_training_on_a_cluster_that_may_grow_does_not_stay_as_small_as_it_begins(
    monkeypatch, section, asked_for, workers
):
    four_nodes(monkeypatch)
    assert capacity.trainers(Cluster(train=section), asked_for, may_grow=True).workers == workers


def test_a_training_on_nodes_with_labels_has_as_many_workers_as_fit_or_else_as_were_asked_for(monkeypatch):
    """Ray Train counts nodes without the labels too."""
    four_nodes(monkeypatch)
    own = Cluster(train={"cpus_per_worker": 4, "gpus_per_worker": 0})
    assert [capacity.trainers(each, 8) for each in (Cluster(), own)] == [(2, 1, 1), (3, 4, 0)]
    with raises(UserError):
        capacity.trainers(Cluster(train={"cpus_per_worker": 9}), 8)
    labelled = {"label_selector": {"ray.io/accelerator-type": "A100"}}
    assert capacity.trainers(Cluster(**labelled), 8, may_grow=True).workers == 2
    assert capacity.trainers(Cluster(**labelled, cpus_per_worker=9), 8, may_grow=True).workers == 8


@pytest.mark.parametrize(
    "section", [{"gpus_per_worker": 0.00001}, {"gpus_per_worker": 2}, {"train": {"gpus_per_worker": 1.5}}]
)
def test_a_worker_takes_one_gpu_or_a_share_that_ray_can_count(section):
    """Defect 14: `_share_of_one` takes whole numbers above 1. Each worker would take two GPUs, and one would idle."""
    with raises(UserError):
        validate(Config, {"name": "x", "model": {"unet": {}}, "cluster": section}, "x")
