"""Masks that hide parts of pictures."""

import torch

from t2i.core.seed import Streams
from t2i.data.augment.masks import random_masks


def test_masks_belong_to_samples() -> None:
    together, alone = random_masks(Streams(range(6), "m"), 32), random_masks(Streams([4], "m"), 32)
    assert together.shape == (6, 1, 32, 32)
    assert torch.equal(together[4], alone[0])
    assert set(together.unique().tolist()) == {0.0, 1.0}


def test_some_pictures_are_hidden_whole_and_in_all_others_something_is() -> None:
    known = random_masks(Streams(range(2000), "m"), 16, hidden=0.2).flatten(1).mean(dim=1)
    share = (known == 0).float().mean().item()
    assert 0.17 < share < 0.26, "rectangles may cover all of a picture too, but rarely"
    assert (random_masks(Streams(range(50), "m"), 16, hidden=1.0) == 0).all()
    assert (known < 1).float().mean() > 0.97
    assert 0.3 < known[known > 0].mean() < 0.8


def test_what_is_hidden_is_made_of_rectangles() -> None:
    """In one row of a picture, at most three stretches are hidden."""
    masks = random_masks(Streams(range(200), "m"), 32)[:, 0]  # (B, S, S)
    edges = (masks[:, :, 1:] < masks[:, :, :-1]).sum(dim=2) + (masks[:, :, 0] == 0)  # where a stretch begins
    assert edges.max() <= 3
