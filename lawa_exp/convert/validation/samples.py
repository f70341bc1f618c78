"""The samples that a model is judged on: blocks of tokens, masked blocks, texts and images with their classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lawa_exp.axes.dataset.base import BaseDataset
from lawa_exp.axes.dataset.blocks import Blocks
from lawa_exp.axes.dataset.image_folder import in_colour, opened
from lawa_exp.axes.dataset.order import permuted
from lawa_exp.axes.dataset.tasks import Classes
from lawa_exp.convert.recognise.encoder import Encoder
from lawa_exp.convert.recognise.recognised import IMAGES, MASKED, TEXTS, TOKENS, Recognised
from lawa_exp.convert.validation.content import Content, Documents, Pictures, Place, TokenArray
from lawa_exp.seams.dataset import Batch, Dataset
from lawa_exp.seams.samples import Samples
from lawa_exp.seams.task import IGNORE, Metric, Task
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.hashing import hash_of, keys_of, uniform

LONGEST, UNKNOWN = 1024, 256  # tokens of a block at most; of a model that does not say how many it takes
BLOCKS, SHORTEST, FEWEST = 64, 16, 10  # blocks are halved for so many; their least length, and number
MASKED_SHARE, UNCHANGED, RANDOM = (
    0.15,
    0.1,
    0.1,
)  # of the tokens; of these as they are, and replaced (Devlin et al. 2019)
SEED, MASKS = 1, 7  # of masks and of the order of labelled samples; what the numbers are for
KEPT = 1 << 30  # bytes of decoded images that are kept in memory


class HeldOut(BaseDataset):
    """A single split, val. sample: one in words; tokens_per_sample: positions of it, 1 of an image."""

    sample = "one"
    tokens_per_sample = 1

    def __init__(self, size: int, fingerprint: str, note: str) -> None:
        self.sizes, self.fingerprint, self.note = {"val": size}, fingerprint, note

    def train_batch(self, seed: int, samples: Samples) -> Batch:
        raise AssertionError("there is no training split")

    noise_batch = train_batch

    def train_targets(self, seed: int, samples: Samples) -> int:
        raise AssertionError("there is no training split")


class MaskedTokens(HeldOut):
    """Blocks of one text with 15% of their tokens masked, by the number of the block alone."""

    unit = "masked token"

    def __init__(self, tokens: np.ndarray, block: int, encoder: Encoder, fingerprint: str, note: str) -> None:
        ends = [e for e in (encoder.first, encoder.last) if e is not None]
        self.width, self.encoder, self.tokens, self.block = block - len(ends), encoder, tokens, block
        self.others = np.setdiff1d(np.arange(encoder.vocab_size), list(encoder.special))  # what a token is replaced by
        self.sample, self.tokens_per_sample = f"{block} tokens", block
        super().__init__(len(tokens) // self.width, fingerprint, note)

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """int64 [len(indices), block], twice; targets are -100 but where a token is masked."""
        e = self.encoder
        rows = np.stack([self.tokens[i * self.width : (i + 1) * self.width] for i in indices.tolist()]).astype(np.int64)
        draws = uniform(keys_of(SEED, MASKS, np.asarray(indices)), 3 * self.width).reshape(len(rows), 3, self.width)
        masked = (draws[:, 0] < MASKED_SHARE) & ~np.isin(rows, list(e.special))
        assert e.mask is not None
        other = self.others[(draws[:, 2] * len(self.others)).astype(np.int64)]
        replaced = np.where(draws[:, 1] < RANDOM, other, np.where(draws[:, 1] < RANDOM + UNCHANGED, rows, e.mask))
        inputs, targets = np.where(masked, replaced, rows), np.where(masked, rows, IGNORE)
        before = [] if e.first is None else [np.full((len(rows), 1), e.first)]
        after = [] if e.last is None else [np.full((len(rows), 1), e.last)]
        ignored = [np.full_like(part, IGNORE) for part in (*before, *after)]
        return (
            np.concatenate([*before, inputs, *after], axis=1),
            np.concatenate([*ignored[: len(before)], targets, *ignored[len(before) :]], axis=1),
        )


class OfTexts(Classes):
    """The same numbers as of images."""

    metrics: Mapping[str, Metric] = {
        **Classes.metrics,
        "loss": Metric("nats per text", tolerance=0.002, column=0),
    }


class Labelled(HeldOut):
    """Samples with classes, in an order of their own: neighbours are of any class."""

    def __init__(self, labels: np.ndarray, classes: int | None, fingerprint: str, note: str) -> None:
        self.labels, self.classes = labels, classes
        self.order = permuted(np.arange(len(labels)), len(labels), int(hash_of(SEED)))
        super().__init__(len(labels), fingerprint, note)


class LabelledTexts(Labelled):
    """Texts padded to the longest of their batch."""

    unit = "text"

    def __init__(
        self, texts: Sequence[str], labels: np.ndarray, model: Recognised, encoder: Encoder, digest: str, note: str
    ) -> None:
        super().__init__(labels, model.classes, digest, note)
        self.texts, self.encoder = texts, encoder
        self.longest = self.tokens_per_sample = min(model.context or UNKNOWN, LONGEST)

    @property
    def usual_task(self) -> Task:
        return OfTexts()

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """Inputs by name, int64 [len(indices), longest], and classes, int64 [len(indices)]."""
        places = self.order[indices]
        assert self.encoder.sample is not None
        rows = [self.encoder.sample(self.texts[i], self.longest) for i in places.tolist()]
        ids = np.full((len(rows), max(map(len, rows))), self.encoder.pad or 0, np.int64)
        attended = np.zeros_like(ids)
        for i, row in enumerate(rows):
            at = slice(-len(row), None) if self.encoder.pads_left else slice(len(row))
            ids[i, at], attended[i, at] = row, 1
        return {"input_ids": ids, "attention_mask": attended}, self.labels[places].copy()


class LabelledImages(Labelled):
    """Images through a transform; as many as fit into KEPT bytes are decoded once."""

    unit = "image"

    def __init__(
        self, pictures: Pictures, transform: Callable[[Any], Tensor], channels: int, digest: str, note: str
    ) -> None:
        super().__init__(pictures.labels.astype(np.int64), len(pictures.classes), digest, note)
        self.paths, self.transform, self.mode = pictures.paths, transform, "RGB" if channels == 3 else "L"
        self.channels = channels
        self.kept: dict[int, np.ndarray] = {}
        self.bytes = 0

    def eval_batch(self, split: str, indices: np.ndarray) -> Batch:
        """float32 [len(indices), channels, height, width] and classes. UserError: images have several sizes."""
        places = self.order[indices].tolist()
        images = [self._image(i) for i in places]
        if odd := next((n for n, image in enumerate(images) if image.shape != images[0].shape), None):
            sizes = " and ".join(str(list(image.shape)) for image in (images[0], images[odd]))
            raise UserError(
                f"{self.paths[places[odd]]}: images of several sizes, {sizes}; a model with an attribute `transform`, "
                "a function of a PIL image, says how they are scaled"
            )
        return np.stack(images), self.labels[places].copy()

    def _image(self, place: int) -> np.ndarray:
        if place in self.kept:
            return self.kept[place]
        path = str(self.paths[place])
        with opened(path) as image:
            colour = image if image.mode == self.mode else in_colour(image, path).convert(self.mode)
            made = self.transform(colour)
        if not isinstance(made, Tensor):
            raise Failed(f"{path}: the transform gives {type(made).__name__}; expected a tensor")
        array: np.ndarray = made.float().numpy()
        if self.bytes + array.nbytes <= KEPT:
            self.kept[place], self.bytes = array, self.bytes + array.nbytes
        return array


def samples_of(content: Content, model: Recognised, built: Any, folders: Sequence[Path], place: Place) -> Dataset:
    """What the model is judged on. built: the model; folders: where its tokenizer may lie.

    UserError: the content is none that it takes, or its tokenizer is not known.
    """
    usual = IMAGES if isinstance(content, Pictures) else TOKENS
    predicts = model.predicts or usual
    if isinstance(content, Pictures) != (predicts is IMAGES):
        raise UserError(f"{place}: {content.note}; {model.title} predicts {predicts}")
    if isinstance(content, Pictures):
        assert model.transform is not None
        transform, how = model.transform(built)
        digest = _digest(*(f"{p}:{p.stat().st_size}" for p in content.paths), how)
        return LabelledImages(content, transform, model.channels, digest, f"{content.note}; {how}")
    if isinstance(content, TokenArray):
        if predicts is not TOKENS:
            raise UserError(f"{place}: {content.note}; {model.title} predicts {predicts}: give text")
        return _blocks(content.tokens, content, model, place)
    encoder = model.encoder(folders)
    if encoder is None:
        where = ", ".join(map(str, folders))
        raise UserError(
            f"{place}: the tokenizer of {model.title} is not known (no tokenizer or meta.pkl in {where}); put it "
            "there, or give tokens as numbers (val.bin)"
        )
    if model.vocab_size and encoder.vocab_size > model.vocab_size:
        raise UserError(
            f"{encoder.name} has {encoder.vocab_size:,} tokens, {model.title} a vocabulary of {model.vocab_size:,}: it "
            "is not the model's"
        )
    if predicts is TEXTS:
        return _labelled_texts(content, model, encoder, place)
    tokens = _encoded(content.texts, encoder, predicts is TOKENS)
    if predicts is TOKENS:
        return _blocks(tokens, content, model, place, encoder)
    assert predicts is MASKED
    if encoder.mask is None:
        raise UserError(f"{place}: {encoder.name} has no token for masking")
    _check_largest(max(int(tokens.max(initial=0)), encoder.mask), content, model, place)
    block = _block(model, len(tokens), place)
    note = f"{content.note}; {encoder.name}; blocks of {block} tokens, 15% masked, always the same"
    return MaskedTokens(tokens, block, encoder, _digest(tokens, note), note)


def _encoded(texts: Sequence[str], encoder: Encoder, ends: bool) -> np.ndarray:
    """The tokens of all texts. ends: with the end of each, where there are several."""
    between = [np.array([encoder.end])] if ends and encoder.end is not None and len(texts) > 1 else []
    return np.concatenate([part for text in texts for part in (encoder.encode(text), *between)])


def _blocks(
    tokens: np.ndarray, content: TokenArray | Documents, model: Recognised, place: Place, encoder: Encoder | None = None
) -> Blocks:
    largest = int(tokens.max(initial=0))
    _check_largest(largest, content, model, place)
    block = _block(model, len(tokens), place)
    takes = f" (the model takes up to {model.context:,})" if model.context and model.context != block else ""
    by = f"; {encoder.name}" if encoder else ""
    note = f"{content.note}{by}; blocks of {block} tokens{takes}"
    return Blocks({"val": tokens}, block, model.vocab_size or largest + 1, _digest(tokens, note), "data", note)


def _check_largest(token: int, content: TokenArray | Documents, model: Recognised, place: Place) -> None:
    if model.vocab_size and token >= model.vocab_size:
        raise UserError(f"{place}: {content.note}: token {token}, and {model.title} has {model.vocab_size:,} of them")


def _block(model: Recognised, tokens: int, place: Place) -> int:
    """Tokens of a block. UserError: there are too few of them."""
    block = min(model.context or UNKNOWN, LONGEST)
    while block >= 2 * SHORTEST and (tokens - 1) // block < BLOCKS:
        block //= 2
    if (tokens - 1) // block < FEWEST:
        raise UserError(f"{place}: {tokens:,} tokens are too few: expected {FEWEST * block + 1:,} or more")
    return block


def _labelled_texts(content: Documents, model: Recognised, encoder: Encoder, place: Place) -> LabelledTexts:
    classes = model.classes
    assert content.labels is not None and classes is not None
    if encoder.sample is None:
        raise UserError(
            f"{place}: {model.title} needs its own tokenizer, in the checkpoints' folder, not {encoder.name}"
        )
    names = {str(name): number for name, number in model.labels.items()}
    numbers = [names.get(v, -1) if isinstance(v, str) else v if isinstance(v, int) else -1 for v in content.labels]
    at = next((i for i, n in enumerate(numbers) if not 0 <= n < classes), None)
    if at is not None:
        known = f" ({', '.join(list(names)[:6])})" if names else ""
        raise UserError(
            f"{place}: row {at + 1:,} has class {content.labels[at]!r}; the model's are 0 to {classes - 1}{known}"
        )
    note = f"{content.note}; {encoder.name}; texts of {min(model.context or UNKNOWN, LONGEST)} tokens at most"
    labels = np.array(numbers, np.int64)
    return LabelledTexts(content.texts, labels, model, encoder, _digest(*content.texts, labels, note), note)


def _digest(*parts: str | np.ndarray) -> str:
    """Of what the samples are made of; of a long array its length and its first 16 million numbers."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            digest.update(part.encode() + b"\0")
        else:
            digest.update(f"{len(part)}:".encode() + np.ascontiguousarray(part[: 1 << 24]).tobytes())
    return digest.hexdigest()
