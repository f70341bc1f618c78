"""What several ranks, or less memory, must not change: seen on one."""

import numpy as np
import pytest
import torch

from lawa_exp.axes.layers.ghost_norm import group_norms
from lawa_exp.axes.layers.statistics import TrainingStatistics
from lawa_exp.axes.model.cifar_resnet.settings import CifarResNetSettings
from lawa_exp.parallel.model import checkpoint_activations, units
from lawa_exp.seams.samples import Pass, Samples
from lawa_exp.system.distributed import Ranks


@pytest.mark.parametrize("norm_group", [None, 2])
def test_blocks_that_are_computed_again_count_once_in_the_running_statistics(norm_group: int | None) -> None:
    inputs = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = []
    for recomputed in (False, True):
        torch.manual_seed(0)
        model = CifarResNetSettings("resnet8", 1, 8, 10, 8).build()
        if norm_group:
            group_norms(model, norm_group)
        if recomputed:
            assert units(model)
            checkpoint_activations(model)
        statistics = TrainingStatistics(model, norm_group, Ranks())
        for _ in range(2):
            statistics.before_pass(Pass(1, 0, 0, Samples(np.arange(4), np.arange(4)), 4, 4, {}, True))
            model(inputs).square().sum().backward()
            statistics.after_passes(1)
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        found.append(gradients | {n: b.clone() for n, b in model.named_buffers()})
    once, twice = found
    assert once.keys() == twice.keys() and not [n for n in once if not torch.equal(once[n], twice[n])]
