"""The order of the training samples: every sample once an epoch, the same whoever asks and in whatever pieces."""

import numpy as np
import pytest

from lawa_exp.axes.dataset.blocks import Blocks
from lawa_exp.axes.dataset.order import in_epochs, permuted

PINNED = [53, 357, 582, 875, 546, 48, 781, 113, 476, 57, 714, 391]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_a_permutation(size):
    first, second = permuted(np.arange(size), size, 1), permuted(np.arange(size), size, 2)
    assert sorted(first.tolist()) == list(range(size))
    if size >= 64:
        assert (first != second).mean() > 0.8 and (first != np.arange(size)).mean() > 0.8


def test_each_epoch_visits_all_in_its_own_order():
    visited = in_epochs(0, 300, 100, seed=5)
    indices = visited.indices
    assert visited.numbers.tolist() == list(range(300)) and not visited.noise
    for e in range(3):
        assert sorted(indices[visited.numbers // 100 == e].tolist()) == list(range(100))
    assert (indices[:100] != indices[100:200]).mean() > 0.8


def test_pieces_make_the_whole_across_an_epochs_end():
    whole = in_epochs(250, 120, 100, seed=1)
    parts = [in_epochs(250 + i, 40, 100, seed=1) for i in (0, 40, 80)]
    for of_parts in (parts, [whole.cut(i, 40) for i in (0, 40, 80)]):
        assert whole.numbers.tolist() == [v for part in of_parts for v in part.numbers.tolist()]
        assert whole.indices.tolist() == [v for part in of_parts for v in part.indices.tolist()]


def test_the_order_is_pinned():
    """A changed order is a changed trajectory: it must not happen unnoticed."""
    assert in_epochs(0, 12, 1000, seed=0).indices.tolist() == PINNED


def test_the_permutation_looks_random():
    """Neighbours in the order are uncorrelated, and places are uniform: chi-square over 10 bins within its 99.9%."""
    order = permuted(np.arange(10_000), 10_000, 3).astype(float)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04
    counts = np.histogram(order[:2000], bins=10, range=(0, 10_000))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 27.9


def test_train_blocks_cover_the_text_once_an_epoch_and_targets_follow_inputs():
    tokens = np.arange(1010, dtype=np.uint16)
    data = Blocks({s: tokens for s in ("train", "val", "test")}, 10, 2000, "f", "d", "")
    n = data.sizes["train"]
    seen = []
    for epoch in range(3):
        inputs, targets = data.train_batch(0, in_epochs(epoch * n, n, n, seed=0))
        assert (targets == inputs + 1).all()
        assert len(np.unique(inputs)) == inputs.size  # no token twice as an input
        seen.append(inputs.min())
    assert len(set(seen)) > 1  # the phase changes from epoch to epoch
    inputs, _ = data.eval_batch("val", np.arange(data.sizes["val"]))
    assert inputs.flatten().tolist() == list(range(1000))
