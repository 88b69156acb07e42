"""How training images are varied: an affine map near the identity, and noise."""

import pytest
import torch

from synthnet.engine.variation import Variation, warped
from synthnet.errors import InputError
from synthnet.seeds import generator


def draw_known(monkeypatch, maps):
    """`torch.randn` as known numbers."""
    monkeypatch.setattr(torch, "randn", lambda *_, **__: torch.tensor(maps))


def ramp(side=8):
    """Each pixel says which column it is in."""
    return torch.arange(float(side)).repeat(1, side).reshape(1, side * side)


def test_nothing_asked_changes_nothing_and_draws_nothing():
    draw, images = generator(0, "vary"), torch.rand(3, 64)
    before = draw.get_state()
    assert torch.equal(Variation()(images, draw), images) and torch.equal(draw.get_state(), before)


def test_a_shift_moves_by_its_share_of_half_a_side_and_repeats_the_border(monkeypatch):
    draw_known(monkeypatch, [[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]])  # of 0.25: a quarter of four pixels, so one to the left
    moved = warped(ramp(), 0.25, None).reshape(8, 8)
    assert torch.allclose(moved, torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 7]).expand(8, 8), atol=1e-5)


def test_a_quarter_turn(monkeypatch):
    draw_known(monkeypatch, [[[-1.0, -1.0, 0.0], [1.0, -1.0, 0.0]]])
    turned = warped(ramp(), 1.0, None).reshape(8, 8)
    assert torch.allclose(turned, torch.arange(7.0, -1, -1)[:, None].expand(8, 8), atol=1e-5)


def test_each_image_has_its_own_map_and_colours_move_together():
    grey = torch.rand(1, 64).expand(2, 64)
    moved = warped(grey, 0.1, generator(0, "vary"))
    assert not torch.allclose(moved[0], moved[1], atol=1e-3)
    colour = torch.rand(1, 1, 64).expand(1, 3, 64).reshape(1, 192)
    channels = warped(colour, 0.1, generator(0, "vary")).reshape(3, 64)
    assert torch.equal(channels[0], channels[1]) and torch.equal(channels[0], channels[2])
    assert not torch.allclose(channels[0], colour[0, :64], atol=1e-3)


def test_the_same_draw_gives_the_same_images():
    images = torch.rand(4, 64)
    one, other = (Variation(0.1, 0.1)(images, generator(0, "vary", 3)) for _ in range(2))
    assert torch.equal(one, other) and not torch.equal(one, images)


def test_what_has_no_square_is_refused():
    with pytest.raises(InputError, match="needs square grey or colour images, got inputs of 30 numbers"):
        Variation(warp=0.1)(torch.rand(2, 30), generator(0, "vary"))
