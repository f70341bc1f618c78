"""A model: a multilayer perceptron, from a function that returns any `torch.nn.Module`.

python -m lawa_exp model=custom model.builder=perceptron:build model.args='{width: 16}' ...
"""

from torch import nn


def build(width=16, inputs=2, outputs=2):
    hidden = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))
