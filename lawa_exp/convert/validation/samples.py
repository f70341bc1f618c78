"""The samples that a model is judged on: blocks of tokens, masked rows or blocks, texts and images with classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lawa_exp.axes.dataset.blocks import Blocks
from lawa_exp.convert.recognise.encoder import Encoder
from lawa_exp.convert.recognise.recognised import IMAGES, MASKED, TEXTS, TOKENS, Recognised
from lawa_exp.convert.validation.classes import numbered_classes
from lawa_exp.convert.validation.content import Content, Documents, Pictures, Place, TokenArray
from lawa_exp.convert.validation.held_out import FEWEST, HeldOut, digest_of, longest_of
from lawa_exp.convert.validation.labelled import LabelledImages, LabelledTexts
from lawa_exp.convert.validation.masked import masked_blocks, masked_rows
from lawa_exp.system.errors import UserError

BLOCKS, SHORTEST = 64, 16  # blocks are halved for so many; their least length


def samples_of(
    content: Content, model: Recognised, built: Any, folders: Sequence[Path], place: Place
) -> HeldOut | Blocks:
    """What the model is judged on. built: the model; folders: where its tokenizer may lie.

    UserError: the content is none that it takes, or its tokenizer is not known.
    """
    usual = IMAGES if isinstance(content, Pictures) else TOKENS
    predicts = model.predicts or usual
    if isinstance(content, Pictures) != (predicts is IMAGES):
        raise UserError(f"{place}: {content.note}; {model.title} predicts {predicts}")
    if isinstance(content, Pictures):
        return _labelled_images(content, model, built, place)
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
    if predicts is MASKED:
        return _masked(content, model, encoder, place)
    return _blocks(_encoded(content.texts, encoder, True), content, model, place, encoder)


def _encoded(texts: Sequence[str], encoder: Encoder, ends: bool) -> np.ndarray:
    """The tokens of all texts. ends: with the end of each, where there are several."""
    between = [np.array([encoder.end])] if ends and encoder.end is not None and len(texts) > 1 else []
    return np.concatenate([part for text in texts for part in (encoder.encode(text), *between)])


def _masked(content: Documents, model: Recognised, encoder: Encoder, place: Place) -> HeldOut:
    """Rows each by itself, as examples are trained on; a long text in blocks."""
    if encoder.mask is None or encoder.sample is None:
        raise UserError(f"{place}: {encoder.name} has no token for masking")
    how = "15% of the tokens masked, always the same"
    if content.is_rows:
        _check_largest(max(encoder.vocab_size - 1, encoder.mask), content, model, place)
        texts = [text for text in content.texts if text.strip()]
        if len(texts) < FEWEST:
            raise UserError(f"{place}: {len(texts)} rows with text are too few: expected {FEWEST} or more")
        longest = longest_of(model.context)
        note = f"{content.note}; {encoder.name}; each row by itself, {longest} tokens at most; {how}"
        return masked_rows(texts, longest, encoder, digest_of(*texts, note), note)
    tokens = _encoded(content.texts, encoder, False)
    _check_largest(max(int(tokens.max(initial=0)), encoder.mask), content, model, place)
    block = _block(model, len(tokens), place)
    note = f"{content.note}; {encoder.name}; blocks of {block} tokens; {how}"
    return masked_blocks(tokens, block, encoder, digest_of(tokens, note), note)


def _blocks(
    tokens: np.ndarray, content: TokenArray | Documents, model: Recognised, place: Place, encoder: Encoder | None = None
) -> Blocks:
    largest = int(tokens.max(initial=0))
    _check_largest(largest, content, model, place)
    block = _block(model, len(tokens), place)
    takes = f" (the model takes up to {model.context:,})" if model.context and model.context != block else ""
    by = f"; {encoder.name}" if encoder else ""
    note = f"{content.note}{by}; blocks of {block} tokens{takes}"
    return Blocks({"val": tokens}, block, model.vocab_size or largest + 1, digest_of(tokens, note), "data", note)


def _check_largest(token: int, content: TokenArray | Documents, model: Recognised, place: Place) -> None:
    if model.vocab_size and token >= model.vocab_size:
        raise UserError(f"{place}: {content.note}: token {token}, and {model.title} has {model.vocab_size:,} of them")


def _block(model: Recognised, tokens: int, place: Place) -> int:
    """Tokens of a block. UserError: there are too few of them."""
    block = longest_of(model.context)
    while block >= 2 * SHORTEST and (tokens - 1) // block < BLOCKS:
        block //= 2
    if (tokens - 1) // block < FEWEST:
        raise UserError(f"{place}: {tokens:,} tokens are too few: expected {FEWEST * block + 1:,} or more")
    return block


def _labelled_texts(content: Documents, model: Recognised, encoder: Encoder, place: Place) -> HeldOut:
    assert content.labels is not None
    if encoder.sample is None:
        raise UserError(
            f"{place}: {model.title} needs its own tokenizer, in the checkpoints' folder, not {encoder.name}"
        )
    labels, classes, said = numbered_classes(content.labels, content.names, model, place)
    longest = longest_of(model.context)
    note = f"{content.note}; {said}; {encoder.name}; texts of {longest} tokens at most"
    digest = digest_of(*content.texts, labels, note)
    return LabelledTexts(content.texts, labels, classes, longest, encoder, digest, note)


def _labelled_images(content: Pictures, model: Recognised, built: Any, place: Place) -> HeldOut:
    assert model.transform is not None
    labels, classes, said = numbered_classes(content.labels, content.names, model, place)
    transform, how = model.transform(built)
    sources = (f"{i}:{i.stat().st_size}" if isinstance(i, Path) else i for i in content.images)
    note = f"{content.note}; {said}; {how}"
    digest = digest_of(*sources, labels, how)
    return LabelledImages(content.images, labels, classes, transform, model.channels, digest, note)
