"""An optimizer: each weight goes a whole rate against the sign of its momentum (signSGD, Bernstein et al. 2018).

    python -m lawa_exp optimizer=custom optimizer.builder=sign_descent:build optimizer.args='{momentum: 0.9}' ...

The rate of a group, `lr`, is set before each update. What stands in `state` is saved, and given back after a kill.
"""

import torch


class SignDescent(torch.optim.Optimizer):
    def __init__(self, parameters, momentum=0.9):
        super().__init__(parameters, {"lr": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                p.sub_(state["momentum"].sign(), alpha=group["lr"])


def build(model, momentum=0.9):
    return SignDescent([p for p in model.parameters() if p.requires_grad], momentum)
