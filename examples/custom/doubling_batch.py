"""Batch sizes: twice as large after every `epochs` epochs, up to `size`.

python -m lawa_exp batch=custom batch.size=16 batch.builder=doubling_batch:doubling batch.args='{first: 4}' ...
"""

from lawa_exp.seams.batches import Batches


def doubling(size, tokens_per_sample, samples_per_epoch, first=4, epochs=1):
    sizes = [first]
    while sizes[-1] * 2 <= size:
        sizes.append(sizes[-1] * 2)
    pieces = [(i * epochs * samples_per_epoch, own) for i, own in enumerate(sizes)]  # (samples seen before it, size)
    return Batches(pieces, tokens_per_sample)
