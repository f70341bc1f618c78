"""A whole training step against nanoGPT's: batch, forward, backward, clipping, update.

Ours is the training loop itself (benchmarks/loop.py). Theirs is the body of nanoGPT's train.py around its own model and
`configure_optimizers`, in the same process and thread. Same size, batch (10.6M parameters: 16x256, as its
config/train_shakespeare_char.py; GPT-2 small: 2x1024 of the 480x1024 of its config/train_gpt2.py, in micro-batches of
1), dtype (bf16 autocast), data (a nanoGPT-style train.bin) and settings of the update. nanoGPT is not kept here:

    git clone https://github.com/karpathy/nanoGPT ../nanoGPT
    python benchmarks/step_vs_nanogpt.py --nanogpt ../nanoGPT --out results/speed/step_eager.md
    python benchmarks/step_vs_nanogpt.py --nanogpt ../nanoGPT --size gpt2_small --out results/speed/step_gpt2_small.md
    python benchmarks/step_vs_nanogpt.py --nanogpt ../nanoGPT --compile --out results/speed/step_compiled.md
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loop
import numpy as np
import torch
from pairs import HEADER, Pairs, machine, publish, row, table
from torch import nn

from lawa_exp.axes.dataset.loading import to_device
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.evaluation.numerics import autocast_for, seeded_model, set_up_arithmetic, task_loss
from lawa_exp.runs.prepare import Prepared

SIZES = {  # of `loop.SIZES`, what it is, and overrides
    "10.6M": ("10.6M parameters (6 layers, 6 heads, width 384, vocabulary 65, no bias)", []),
    "gpt2_small": (
        "GPT-2 small (124M parameters: 12 layers, 12 heads, width 768, vocabulary 50304, no bias)",
        [
            *("model.scale_attn_by_inverse_layer_idx=false", "lr.peak=6e-4", "trainer.dtype=bfloat16"),
            *("batch.size=2", "trainer.micro_batch=1", "evaluate.samples=2", "evaluate.batch_size=1"),
        ],
    ),
}


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, required=True, metavar="DIR", help="a checkout of nanoGPT")
    parser.add_argument("--size", choices=SIZES, default="10.6M")
    parser.add_argument("--compile", action="store_true", help="torch.compile on both sides")
    parser.add_argument("--within", type=float, default=0.01, help="half-width of the 95%% interval to reach")
    parser.add_argument("--seconds", type=float, default=90, help="stop after so long all the same")
    parser.add_argument("--threads", type=int, help="default: the cores")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    if not (options.nanogpt / "model.py").is_file():
        parser.error(f"no model.py in {options.nanogpt}: git clone https://github.com/karpathy/nanoGPT DIR")

    with tempfile.TemporaryDirectory() as folder:
        what, overrides = SIZES[options.size]
        overrides = [*overrides, f"trainer.compile={str(options.compile).lower()}"]
        overrides += [f"trainer.threads={options.threads}"] if options.threads else []
        p = loop.prepared(options.size, overrides, Path(folder))
        agreed = check_same_training(p, options.nanogpt)
        theirs = nanogpt_step(p, options.nanogpt, options.compile)
        pairs = Pairs(options.within, max_seconds=options.seconds)

        def after_step(seconds: float) -> bool:
            pairs.record(seconds)
            while pairs.turn == 1 and not pairs.done:
                start = time.perf_counter()
                theirs()
                pairs.record(time.perf_counter() - start)
            return pairs.done

        loop.watch(p, after_step)

    how = "compiled" if options.compile else "eager"
    size, split = p.config.batch.size, p.splits[p.config.batch.size]
    batch = f"batch {size}x{p.config.model.context}"
    batch += f" in {split.accumulate} micro-batches" if split.accumulate > 1 else ""
    publish(
        f"A training step against nanoGPT's, {how}",
        [
            f"{what}, {batch}, bf16 autocast, CPU. A is a step of `python -m lawa_exp`'s own loop with no averager "
            "attached; B is nanoGPT's.",
            table(HEADER, [row(f"step, {how}", "lawa_exp", "nanoGPT", pairs)]),
            machine(p.config.trainer.threads, load),
            f"Before it: {agreed}.",
        ],
        options.out,
    )


def nanogpt_model(p: Prepared, nanogpt: Path) -> nn.Module:
    """nanoGPT's GPT in the shape of `p`'s model."""
    if str(nanogpt) not in sys.path:
        sys.path.insert(0, str(nanogpt))
    module = importlib.import_module("model")
    s = p.config.model
    assert not s.scale_attn_by_inverse_layer_idx, "nanoGPT does not have it"
    shape = {"n_layer": s.layers, "n_head": s.heads, "n_embd": s.width, "bias": s.bias, "dropout": s.dropout}
    with contextlib.redirect_stdout(io.StringIO()):
        return module.GPT(module.GPTConfig(block_size=s.context, vocab_size=s.vocab_size, **shape))


def nanogpt_optimizer(p: Prepared, model: nn.Module) -> torch.optim.Optimizer:
    """From its own `configure_optimizers`, with our settings."""
    s = p.config.optimizer
    with contextlib.redirect_stdout(io.StringIO()):
        return model.configure_optimizers(s.weight_decay, p.config.lr.peak, (s.beta1, s.beta2), "cpu")  # type: ignore[operator]


def nanogpt_step(p: Prepared, nanogpt: Path, compiled: bool) -> Callable[[], None]:
    """One iteration of nanoGPT's train.py: its order and calls, no scaler (it has none in bfloat16), no logging."""
    torch.manual_seed(0)
    raw = nanogpt_model(p, nanogpt)
    optimizer = nanogpt_optimizer(p, raw)
    model: Any = torch.compile(raw) if compiled else raw
    context, split = p.config.model.context, p.splits[p.config.batch.size]

    def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
        data = np.memmap(Path(p.config.dataset.path) / "train.bin", dtype=np.uint16, mode="r")
        ix = torch.randint(len(data) - context, (split.micro,))
        x = torch.stack([torch.from_numpy((data[i : i + context]).astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy((data[i + 1 : i + 1 + context]).astype(np.int64)) for i in ix])
        return x, y

    batch = get_batch()

    def step() -> None:
        nonlocal batch
        for group in optimizer.param_groups:
            group["lr"] = p.config.lr.peak
        for _ in range(split.accumulate):
            with torch.autocast("cpu", torch.bfloat16):
                _, loss = model(*batch)
                loss = loss / split.accumulate
            batch = get_batch()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), p.config.optimizer.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def check_same_training(p: Prepared, nanogpt: Path) -> str:
    """From equal weights: equal losses before and after one update by each side's own optimizer. Exits if not."""
    set_up_arithmetic(p.config)
    ours = seeded_model(p.config, torch.device("cpu"))
    theirs = nanogpt_model(p, nanogpt)
    theirs.load_state_dict(ours.state_dict())  # the same names
    objective, autocast = task_loss(p.config, ours, p.data.task), autocast_for(p.config, torch.device("cpu"))
    first = in_epochs(0, p.config.batch.size, p.data.sizes["train"], p.config.seed)
    inputs, targets, *_ = to_device(p.data.train_batch(p.config.seed, first), torch.device("cpu"))
    optimizers = [p.config.optimizer.build(ours), nanogpt_optimizer(p, theirs)]
    losses: list[list[float]] = []
    for _ in range(2):
        with autocast():
            pair = [objective(inputs, targets)["loss"] / targets.numel(), theirs(inputs, targets)[1]]
        losses.append([loss.item() for loss in pair])
        for loss, model, optimizer in zip(pair, (ours, theirs), optimizers, strict=True):
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), p.config.optimizer.clip_norm)
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = p.config.lr.peak
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    for a, b in losses:
        if abs(a - b) > 1e-3 * b:
            sys.exit(f"not the same training: losses {losses} (ours, nanoGPT's) before and after an update")
    shown = " and ".join(f"{a:.5f} against {b:.5f}" for a, b in losses)
    return f"with copied weights the losses before and after one update are {shown} (lawa_exp against nanoGPT)"


if __name__ == "__main__":
    main()
