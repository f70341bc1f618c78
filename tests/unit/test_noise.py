"""Random numbers of tensors: a function of seed, step, name and place alone."""

import pytest
import torch

from lawa_exp.seams.noise import keyed_uniform


@pytest.mark.parametrize("shape", [(), (7,), (6, 5), (4, 3, 2)])
def test_a_function_of_seed_step_name_and_place(shape: tuple[int, ...]) -> None:
    drawn = keyed_uniform(torch.empty(shape), 3, 5, "w")
    assert drawn.shape == shape and drawn.dtype == torch.float32 and ((drawn >= 0) & (drawn < 1)).all()
    assert torch.equal(drawn, keyed_uniform(torch.ones(shape, dtype=torch.float64), 3, 5, "w"))
    for seed, step, name in ((4, 5, "w"), (3, 6, "w"), (3, 5, "v")):
        assert not torch.equal(drawn, keyed_uniform(torch.empty(shape), seed, step, name))


def test_fewer_rows_are_a_slice_of_more() -> None:
    whole = keyed_uniform(torch.empty(10, 3), 0, 1, "w")
    assert torch.equal(whole[:4], keyed_uniform(torch.empty(4, 3), 0, 1, "w"))


def test_uniform_and_independent_of_neighbours_steps_and_names() -> None:
    """Chi-square over 64 bins, and correlations, of a million numbers: within four standard deviations."""
    count = 1_000_000
    drawn = keyed_uniform(torch.empty(1000, 1000), 0, 1, "w").flatten().double()
    bins = torch.bincount((drawn * 64).long(), minlength=64).double()
    chi = ((bins - count / 64) ** 2 / (count / 64)).sum().item()
    assert abs(chi - 63) < 4 * (2 * 63) ** 0.5
    others = [keyed_uniform(torch.empty(1000, 1000), 0, *key).flatten().double() for key in ((2, "w"), (1, "v"))]
    for other in (drawn.roll(1), drawn.view(1000, 1000).T.flatten(), *others):
        assert abs(torch.corrcoef(torch.stack([drawn, other]))[0, 1].item()) < 4 / count**0.5
