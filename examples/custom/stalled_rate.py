"""A fault: the rate is 0 for some steps, as where a scheduler fails.

    python -m lawa_exp fault=custom fault.builder=stalled_rate:Stalled fault.at=50% fault.length=10 ...

It may have `sampler(inner)` as well: a `lawa_exp.seams.sampler.Sampler` in place of the training's own.
"""


class Stalled:
    def __init__(self, at, length):
        """It strikes the steps at+1 .. at+length."""

    def rate_factor(self, step):
        return 0.0
