"""A sampler: every sample is drawn from the whole training split, with replacement.

    python -m lawa_exp sampling=custom sampling.builder=with_replacement:WithReplacement ...

The samples of a step follow from the seed and their numbers, so that there is nothing to save.
"""

import numpy as np

from lawa_exp.seams.sampler import Sampler
from lawa_exp.seams.samples import Samples
from lawa_exp.system.hashing import keys_of, uniform

PURPOSE = 1000  # what these random numbers are for: no other draws have the same


class WithReplacement(Sampler):
    def __init__(self, context):
        self.seed, self.batches, self.size = context.seed, context.batches, context.data.sizes["train"]

    def samples(self, step):
        numbers = np.arange(self.batches.samples(step - 1), self.batches.samples(step))
        draws = uniform(keys_of(self.seed, PURPOSE, numbers), 1)[:, 0]
        return Samples(numbers, (draws * self.size).astype(np.int64))
