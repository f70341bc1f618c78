"""--data: the checkpoints' own model, recognised or built by the user's function, on data from outside."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from lawa_exp.averaging.tensors import all_names, live_tensors
from lawa_exp.convert.recognise.families import recognise
from lawa_exp.convert.recognise.recognised import Looked
from lawa_exp.convert.validation.content import place_of
from lawa_exp.convert.validation.held_out import HeldOut
from lawa_exp.convert.validation.kinds import content_of
from lawa_exp.convert.validation.samples import samples_of
from lawa_exp.evaluation.on_data import OnData
from lawa_exp.readout.checkpoints import Fitted
from lawa_exp.readout.evaluators.base import Evaluator
from lawa_exp.readout.request import Request
from lawa_exp.readout.subject import Named
from lawa_exp.system.distributed import start_device
from lawa_exp.system.errors import UserError
from lawa_exp.system.machine import default_threads
from lawa_exp.system.memory import allocating

BLOCKS, OTHERS = 256, 2048  # samples of an evaluation where --samples does not say: of tokens, and rows or images
BATCHES = 32  # that they are cut into, at least, where there are as many: the noise is measured on them
LARGEST_BATCH = {True: 64, False: 16}  # samples of a forward pass, of classes and of tokens

STATISTICS = (
    "BatchNorm: statistics of the newest checkpoint, as the averaged file has them; recalibrated on training data an "
    "average is usually better."
)


def on_data(request: Request, data: str, name: str, first: Path) -> Evaluator:
    """first: a checkpoint. UserError: the model is not known, does not fit the data, or fails on a batch of them."""
    target, e = request.target, request.evaluation
    for flag, value in (("--evaluate", e.how), ("--dataset", e.dataset), ("--bn", target.bn), *e.flags.items()):
        if value is not None:
            raise UserError(f"{flag}={value}: not with --data")
    if e.overrides:
        raise UserError(f"{e.overrides[0]}: settings are for --model NAME --dataset NAME, not for --data")
    if e.model is not None and ":" not in e.model:
        raise UserError(f"--model={e.model}: with --data expected MODULE:FUNCTION, which builds the model")
    torch.set_num_threads(target.threads or default_threads(1))
    root = Path(target.run)
    looked = Looked(first, root if root.is_dir() else root.parent, target.key)
    known = recognise(looked, e.model)
    place = place_of(data, known.predicts)
    content = content_of(place)
    with allocating(known.title):
        model = known.build()
    near = place.path if place.path.is_dir() else place.path.parent
    samples = samples_of(content, known, model, [*looked.folders, near], place)
    labelled = samples.classes is not None
    counted = samples.counted if isinstance(samples, HeldOut) else "block"
    count = requested_samples(e.samples, BLOCKS if counted == "block" else OTHERS)
    device, ranks = start_device(target.device or "auto")
    evaluated = samples.sizes["val"] if isinstance(count, str) else min(count, samples.sizes["val"])
    batch_size = max(1, min(LARGEST_BATCH[labelled], evaluated // BATCHES))
    own, names = live_tensors(model), all_names(model)
    aliases = {alias: first_name for alias, first_name in names.items() if alias != first_name}
    others = [*names, *known.masks]
    loaded = functools.partial(known.loaded, model) if known.loaded else None
    fitted = Fitted(own, others, known.title, known.settings, known.masks, target.key, aliases, loaded)
    score = OnData(model, samples, count, batch_size, device, ranks)
    score.swap.place(fitted(first))
    score.try_one_batch(known.title)
    more = "" if score.evaluated == samples.sizes["val"] else "; --samples says another number, or all"
    notes = [
        f"Model: {known.title}, in float32 on {device.type}.",
        f"Data: {samples.note}.",
        f"Evaluated: {score.evaluated:,} of {samples.sizes['val']:,} {counted}s{more}.",
    ]
    identity = {"data": samples.fingerprint, "samples": str(count), "batch_size": batch_size, "model": known.title}
    return Evaluator(
        score=score,
        fitted=fitted,
        named=Named(f"{name} on {place.path.name}", samples.task.metrics["loss"].unit),
        averaged=score.averaged,
        device=device,
        ranks=ranks,
        statistics=score.statistics,
        bn=score.bn,
        no_test="--data is one split",
        notes=notes,
        label=f"data-{place.path.stem}",
        identity=identity,
        task=samples.task,
        of_averages=[STATISTICS] if score.bn else [],
    )


def requested_samples(text: str | None, default: int) -> int | str:
    """--samples, as a number or `all`."""
    if text is None:
        return default
    if text == "all":
        return text
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1 << 40):
        raise UserError(f"--samples={text}: expected a whole number above 0, or all")
    return int(text)
