"""A change of layers: every ReLU is squared (So et al. 2021, Primer).

    python -m lawa_exp layers=[custom] layers.custom.builder=squared_relu:square ...

The model is changed in place. Parameters that stay keep their names.
"""

from torch import nn

from lawa_exp.system.errors import UserError


class SquaredReLU(nn.Module):
    def forward(self, x):
        return x.relu().square()


def square(model):
    places = [(parent, name) for parent in model.modules() for name, m in parent.named_children() if type(m) is nn.ReLU]
    if not places:
        raise UserError("layers.custom.builder=squared_relu:square: the model has no ReLU")
    for parent, name in places:
        setattr(parent, name, SquaredReLU())
