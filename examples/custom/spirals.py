"""A data set: points on two spirals, which a network in the plane has to tell apart.

    python -m lawa_exp model=custom model.builder=perceptron:build dataset=custom dataset.builder=spirals:Spirals

`BaseDataset` has what data in memory need no code for.
"""

import hashlib

import numpy as np

from lawa_exp.axes.dataset.base import BaseDataset

SPLITS = {"train": 0, "val": 1, "test": 2}


class Spirals(BaseDataset):
    unit = "image"  # what a loss is the mean over
    classes = 2  # the task is then to tell classes apart
    tokens_per_sample = 1
    sample = "a point of the plane in 2 classes"
    note = ""

    def __init__(self, context, count=256, turns=1.5):
        self.points, self.labels = {}, {}
        for split, seed in SPLITS.items():
            angle = np.sqrt(np.random.default_rng(seed).uniform(size=count)) * turns * 2 * np.pi
            self.labels[split] = np.arange(count) % 2
            sign = 1 - 2 * self.labels[split]
            self.points[split] = np.float32(sign * angle / 5 * (np.cos(angle), np.sin(angle))).T.copy()
        self.sizes = dict.fromkeys(SPLITS, count)
        self.fingerprint = hashlib.sha256(b"".join(p.tobytes() for p in self.points.values())).hexdigest()

    def train_batch(self, seed, samples):
        """Inputs, float32 [n, 2], and targets, int64 [n]."""
        return self.eval_batch("train", samples.indices)

    def eval_batch(self, split, indices):
        return self.points[split][indices], self.labels[split][indices]

    def train_targets(self, seed, samples):
        return len(samples)  # all count

    def noise_batch(self, seed, samples):
        """For fault=batches: points at random, which follow from the seed and the samples' numbers."""
        draws = np.random.default_rng([seed, *samples.numbers.tolist()])
        return draws.normal(size=(len(samples), 2)).astype(np.float32), draws.integers(0, 2, len(samples))
