"""A watch: training rows have the L2 norm of all weights, before the update of their step.

    python -m lawa_exp watch=[custom] watch.custom.builder=weight_norm:WeightNorm ...

A watch only reads. `after_passes` returns numbers on the device, and `arrived` gets them on the host, later.
"""

import torch

from lawa_exp.parallel.model import whole
from lawa_exp.seams.callback import Callback


class WeightNorm(Callback):
    def __init__(self, context):
        self.weights, self.every = [p for p in context.model.parameters() if p.requires_grad], context.logged_every

    def after_passes(self, step):
        if step % self.every:
            return {}
        norm = torch.nn.utils.get_total_norm([p.detach() for p in self.weights])
        return {"weight_norm": whole(norm)}  # also where each rank has some rows of every weight (FSDP)

    def arrived(self, step, numbers):
        return {"weight_norm": numbers["weight_norm"]} if "weight_norm" in numbers else {}
