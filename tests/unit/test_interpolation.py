"""Slerp by its geometry, and which x_T stand where in rows and squares."""

import math

import pytest
import torch

from taugrid.workers.diffusion.interpolation import rows, slerp, square


def draws(count, seed=0):
    return torch.randn(count, 2, 3, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def angle(a, b):
    return math.acos(torch.dot(a.flatten(), b.flatten()) / (a.norm() * b.norm()))


def test_slerp_goes_round_the_sphere_at_an_even_pace():
    a, b = draws(2)
    b = b * (a.norm() / b.norm())
    between = slerp(a, b, torch.linspace(0, 1, 6))
    assert between.shape == (6, 2, 3, 4)
    torch.testing.assert_close(between[0], a)
    torch.testing.assert_close(between[-1], b)
    for i in range(6):
        assert between[i].norm().item() == pytest.approx(a.norm().item(), rel=1e-6)
        assert angle(a, between[i]) == pytest.approx(i / 5 * angle(a, b), abs=1e-6)
    assert (a + b).norm() / 2 < 0.9 * a.norm(), "a straight line would leave the sphere"


def test_rows_are_pairs_of_neighbours_and_a_square_has_them_above_and_below():
    x_T = draws(4)
    pairs = rows(x_T, 3)
    assert pairs.shape == (2, 3, 2, 3, 4)
    for i in range(2):
        torch.testing.assert_close(pairs[i, [0, -1]], x_T[2 * i : 2 * i + 2])
        torch.testing.assert_close(pairs[i, 1], slerp(x_T[2 * i], x_T[2 * i + 1], torch.tensor([0.5]))[0])
    found = square(x_T, 5)
    torch.testing.assert_close(torch.stack([found[0, 0], found[0, -1], found[-1, 0], found[-1, -1]]), x_T)
    above, below = rows(x_T, 5)
    torch.testing.assert_close(found[0], above)
    torch.testing.assert_close(found[-1], below)
    torch.testing.assert_close(found[2, 3], slerp(above[3], below[3], torch.tensor([0.5]))[0])


def test_between_opposite_points_there_is_no_arc_and_the_straight_line_is_used():
    a = draws(1)[0]
    torch.testing.assert_close(slerp(a, -a, torch.tensor([0.25]))[0], a / 2)
    assert slerp(a.float(), -a.float(), torch.tensor([0.25])).dtype == torch.float32
