"""An update: the gradient of every matrix loses its mean over the inputs (Yong et al. 2020, Gradient Centralization).

    python -m lawa_exp update=[custom] update.custom.builder=centralised_gradient:Centralised ...

`after_passes` stands between the clipping and the optimizer.
"""

from lawa_exp.seams.callback import Callback


class Centralised(Callback):
    def __init__(self, context):
        self.matrices = [p for p in context.model.parameters() if p.ndim > 1]

    def after_passes(self, step):
        for p in self.matrices:
            if p.grad is not None:
                p.grad.sub_(p.grad.mean(dim=tuple(range(1, p.ndim)), keepdim=True))
        return {}
