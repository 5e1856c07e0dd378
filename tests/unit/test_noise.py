"""The generator: known answers, purity, distribution, and golden values that must never change.

All inputs of the statistical tests are fixed, so one that passes once passes always; the thresholds are so wide that
chance would not explain a failure after a change of the inputs either.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from snapshots import raises

from taugrid.workers.diffusion.noise import (
    label_drops,
    normal,
    philox4x32,
    stream_key,
    training_draws,
    uniform_integers,
    words,
)

WORD = st.integers(0, 2**32 - 1)
SEED = st.sampled_from([0, 1, 12345, 2**63 - 1])
INDEX = st.integers(0, 2**63 - 1)


def philox_of_integers(counter, key):
    """Philox4x32-10 in Python's integers, which do not wrap."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        left, right = divmod(0xD2511F53 * a, 2**32), divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = right[0] ^ b ^ k, right[1], left[0] ^ d ^ m, left[1]
        k, m = (k + 0x9E3779B9) % 2**32, (m + 0xBB67AE85) % 2**32
    return [a, b, c, d]


def philox_of_tensors(counter, key):
    return [lane.item() for lane in philox4x32(tuple(torch.tensor([word]) for word in counter), key)]


PI = "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0"


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (" ".join(["ffffffff"] * 4), "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (*PI, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_known_answers_of_random123(counter, key, answer):
    counter, key, answer = ([int(word, 16) for word in words.split()] for words in (counter, key, answer))
    assert philox_of_tensors(counter, key) == answer


@given(st.lists(WORD, min_size=4, max_size=4), st.tuples(WORD, WORD))
def test_products_above_63_bits_are_exact(counter, key):
    assert philox_of_tensors(counter, key) == philox_of_integers(counter, key)


def test_words_put_block_time_and_index_in_their_places():
    index, time = 5 * 2**32 + 7, 9
    row = words(11, "sample", torch.tensor([index]), time, blocks=3)[0].tolist()
    for block in range(3):
        expected = philox_of_integers([block, time, 7, 5], stream_key(11, "sample"))
        assert row[4 * block : 4 * block + 4] == expected
    a, b = torch.tensor([4, 4, 6]), torch.tensor([1, 2, 3])  # a time for each index
    one_by_one = [words(1, "x", a[i : i + 1], int(b[i]), blocks=2) for i in range(3)]
    assert torch.equal(words(1, "x", a, b, blocks=2), torch.cat(one_by_one))


@given(SEED, st.lists(INDEX, min_size=1, max_size=9), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_sample_does_not_depend_on_its_batch(seed, indices, time, random):
    alone = {n: normal(seed, torch.tensor([n]), time, (2, 5, 3)) for n in indices}
    random.shuffle(indices)
    together = normal(seed, torch.tensor(indices), time, (2, 5, 3))
    assert torch.equal(together, torch.cat([alone[n] for n in indices]))


@given(st.integers(1, 70), st.integers(1, 70))
def test_smaller_image_is_a_prefix_of_a_larger(a, b):
    small, large = sorted((a, b))
    n = torch.tensor([3, 2**40])
    assert torch.equal(normal(5, n, 7, (small,)), normal(5, n, 7, (large,))[:, :small])
    assert torch.equal(normal(5, n, 7, (small, large)), normal(5, n, 7, (small * large,)).reshape(2, small, large))
    assert normal(5, n[:0], 7, (small, large)).shape == (0, small, large)


def test_seed_index_time_and_domain_each_make_another_stream():
    """Neighbours, and pairs that coincide if a high word is dropped or if seeds and indices are added up."""
    keys = [
        (seed, n, t, domain)
        for seed in (0, 1, 2**32, 2**63 - 1)
        for n in (0, 1, 2**32, 2**32 + 1, 2**62)
        for t in (0, 1, 2, 1000)
        for domain in ("sample", "train", "train-eps")
    ]
    first = {tuple(words(seed, domain, torch.tensor([n]), t, blocks=1)[0].tolist()) for seed, n, t, domain in keys}
    assert len(first) == len(keys)


def test_normals_are_standard_normal():
    z = normal(0, torch.arange(64), 0, (3, 32, 32)).double().flatten()
    count = len(z)  # 196,608
    assert abs(z.mean()) < 5 / math.sqrt(count)
    assert abs(z.square().mean() - 1) < 5 * math.sqrt(2 / count)
    assert abs(z.pow(3).mean()) < 5 * math.sqrt(15 / count)
    assert abs(z.pow(4).mean() - 3) < 5 * math.sqrt(96 / count)
    for lane in range(4):
        assert stats.kstest(z[lane::4].numpy(), "norm").pvalue > 1e-5


def test_normals_are_box_muller_in_float64():
    """To half a unit in the last place of float32; a transform in float32 is off by many near 0 and in the tails."""
    n = torch.arange(40)
    first, second = ((words(2, "sample", n, 6, blocks=50).numpy() + 0.5) / 2**32).reshape(-1, 2).T
    radius, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
    np.testing.assert_allclose(normal(2, n, 6, (200,)).flatten(), expected, rtol=2**-24, atol=1e-14)


@given(WORD, WORD, st.sampled_from([1, 2, 1000, 50_000, 2**31 - 1, 2**31]))
def test_uniform_integers_are_exact(high, low, n):
    expected = (high * 2**32 + low) * n >> 64
    assert uniform_integers(torch.tensor([high]), torch.tensor([low]), n).item() == expected


def test_training_draws_are_uniform():
    positions = torch.arange(100)
    draws = [training_draws(3, step, positions, num_images=7, timesteps=10) for step in range(500)]
    index, t, flip = (torch.stack([draw[i] for draw in draws]).flatten() for i in range(3))
    assert (t.min(), t.max()) == (1, 10)
    for values, bins in ((index, 7), (t - 1, 10), (flip.long(), 2), (index + 7 * (t - 1), 70), (t - 1 + 10 * flip, 20)):
        assert stats.chisquare(torch.bincount(values, minlength=bins).numpy()).pvalue > 1e-5


def test_dropped_labels_are_a_function_of_seed_step_and_position_and_never_change():
    dropped = label_drops(3, 17, torch.arange(64), 0.25)
    assert dropped.nonzero().flatten().tolist() == [1, 11, 12, 14, 20, 29, 32, 33, 38, 40, 42, 46, 54, 60, 62]
    assert torch.equal(label_drops(3, 17, torch.arange(64)[1::2], 0.25), dropped[1::2])
    assert not label_drops(3, 17, torch.arange(64), 0.0).any()
    more = label_drops(3, 17, torch.arange(64), 0.5)
    assert more[dropped].all(), "a larger share drops more, and the same"
    assert not any(torch.equal(label_drops(*other, torch.arange(64), 0.25), dropped) for other in ((3, 18), (4, 17)))
    many = label_drops(0, 0, torch.arange(40_000), 0.1).double().mean().item()
    assert many == pytest.approx(0.1, abs=0.006)  # 4 standard errors


def test_training_draws_depend_on_step_and_position_alone():
    whole = training_draws(3, 17, torch.arange(8), 1797, 1000)
    for rank in (0, 1):
        part = training_draws(3, 17, torch.arange(8)[rank::2], 1797, 1000)
        for all_of, its in zip(whole, part, strict=True):
            assert torch.equal(all_of[rank::2], its)


@pytest.mark.parametrize("time", [-1, 2**32])
def test_time_out_of_range_is_refused(time):
    with raises(ValueError):
        normal(0, torch.arange(2), time, (4,))


def test_golden_values():
    """Samples on people's disks were made from these: if this fails, the change is wrong, not the test."""
    far = torch.tensor([2**32 + 5])
    assert words(0, "sample", torch.tensor([0, 1]), 0, blocks=1).tolist() == [
        [3078224743, 2689712892, 3611179118, 623011234],
        [1187688695, 3206075841, 4249285124, 2562161347],
    ]
    assert words(2**63 - 1, "sample", far, 1000, blocks=1).tolist() == [
        [3464270762, 3853934604, 3118701678, 2286711255]
    ]
    for found, expected in (
        (normal(0, torch.tensor([0, 1]), 0, (3,)),
         [[-0.57259852, -0.58164656, 0.36078522], [-0.03553256, -1.60299933, -0.12014680]]),
        (normal(2**63 - 1, far, 1000, (1, 2, 2)), [[[[0.52385706, -0.39428082], [-0.78349656, -0.16182545]]]]),
        (normal(7, torch.tensor([127]), 99_999, (2,), domain="train-eps"), [[0.54726624, 1.06670260]]),
    ):  # fmt: skip
        torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-6)
    draws = training_draws(7, 99_999, torch.arange(4), num_images=50_000, timesteps=1000)
    assert draws.index.tolist() == [23427, 29884, 47733, 44162]
    assert draws.t.tolist() == [115, 2, 565, 82]
    assert draws.flip.tolist() == [False, True, True, True]
