"""How fast one GPU trains: tokens per second and MFU of GPT-2, images per second of ResNet-50 with and without loading.

The trainer's own loop (benchmarks/loop.py), timed over whole steps between two waits for the device: batch, passes,
clipping, update, rows. GPT-2 is compiled, in bfloat16, and attends through torch's scaled_dot_product_attention, whose
flash kernel is the only one allowed here on a GPU; its batch is the published one. ResNet-50 trains on a folder of
generated photographs, decoded by `trainer.workers`, and then on bytes that lie ready in memory: where the first is as
fast as the second, loading keeps up.

    python benchmarks/gpu_speed.py --out results/speed/gpu_speed.md
    python benchmarks/gpu_speed.py --models gpt2_small --micro-batch 16,32,64     # which fits best
    python benchmarks/gpu_speed.py --models resnet50 --images /data/imagenet --workers 24
    python benchmarks/gpu_speed.py --smoke                                        # tiny, on a CPU: does it work
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import itertools
import os
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import loop
import numpy as np
import torch
from gpu_peaks import peak_of
from image_tree import write_images
from pairs import machine, publish, table
from torch.nn.attention import SDPBackend, sdpa_kernel

from lawa_exp.axes.dataset.loading import train_batches
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.runs.prepare import Prepared
from lawa_exp.seams.samples import Samples

LANGUAGE = ("gpt2_small", "gpt2_medium", "gpt2_large")
AIMS = {  # on one GPU of the H100's class: tokens per second, or the share of the peak (MFU)
    "gpt2_small": ("tokens per second", 430_000.0),
    "gpt2_medium": ("MFU", 0.45),
    "gpt2_large": ("MFU", 0.45),
    "resnet50": ("loading / no loading", 0.97),
}
SMOKE = {  # overrides that make it tiny
    "gpt": [
        "model.layers=1",
        "model.heads=2",
        "model.width=16",
        "model.context=32",
        "batch.size=4",
        "trainer.micro_batch=2",
    ],
    "resnet50": ["dataset.image_size=32", "dataset.resize=36", "batch.size=4", "evaluate.batch_size=2"],
}


@dataclass(frozen=True)
class Speed:
    """seconds of a step; samples and, of language, tokens in it; FLOPs of one of them, forward and backward."""

    seconds: float
    units: int
    flops: float
    micro: int
    memory: float  # GB at most

    @property
    def rate(self) -> float:
        return self.units / self.seconds

    def mfu(self, peak: float | None) -> float | None:
        return self.rate * self.flops / peak if peak else None


def main() -> int:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(AIMS), help="default: all")
    parser.add_argument("--micro-batch", help="sequences or images in one pass, a row for each; default: the trainer's")
    parser.add_argument("--steps", type=int, default=20, help="timed; default: 20")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before them; default: 5")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--images", type=Path, help="a folder in ImageNet's layout; default: generated photographs")
    parser.add_argument("--workers", type=int, help="trainer.workers; default: the trainer's")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on a CPU, to see that it works")
    parser.add_argument("--out", type=Path, help="file for the page")
    options = parser.parse_args()
    options.models = options.models.split(",")
    if unknown := set(options.models) - AIMS.keys():
        parser.error(f"--models {sorted(unknown)[0]}: expected some of {', '.join(AIMS)}")
    if options.smoke:
        options.steps, options.warm_up, options.eager = 2, 1, True
    elif not torch.cuda.is_available():
        print(
            f"error: no CUDA device: {not_measured(options.models)}; --smoke runs the same code tiny", file=sys.stderr
        )
        return 2

    device = "CPU" if options.smoke else torch.cuda.get_device_name()
    found = peak_of(device)
    peak, source = found or (None, f"the peak of {device} is not in benchmarks/gpu_peaks.py: no MFU")
    parts, reached = [], {}
    language = [m for m in LANGUAGE if m in options.models]
    if language:
        rows = []
        for name, micro in itertools.product(language, micro_batches(options)):
            speed = language_speed(name, micro, options)
            rows.append(line(name, speed, peak))
            best = {"tokens per second": speed.rate, "MFU": speed.mfu(peak)}[AIMS[name][0]]
            reached[name] = max(filter(None, (best, reached.get(name))), default=None)
        parts += [table((*HEADER, "tokens/s", "MFU"), rows)]
    if "resnet50" in options.models:
        for micro in micro_batches(options):
            with_loading, without, alone, workers, images = image_speeds(micro, options)
            rows = [line("resnet50, loading included", with_loading, peak)]
            rows += [line("resnet50, bytes ready in memory", without, peak)]
            ratio = with_loading.rate / without.rate
            reached["resnet50"] = max(ratio, reached.get("resnet50", 0.0))
            parts += [
                table((*HEADER, "images/s", "MFU"), rows),
                f"Loading / no loading: {ratio:.3f}. Loading alone, to the device: {alone:,.0f} images/s. {images}, "
                f"{workers} worker(s).",
            ]
    parts += [aims(reached, options), f"MFU: {FORMULA}. {peak / 1e12:.1f} TFLOP/s: {source}." if peak else source]
    title = (
        "Smoke test of gpu_speed: tiny, on a CPU; no figure here is a result" if options.smoke else f"{device}: speed"
    )
    publish(title, [*parts, machine(torch.get_num_threads(), load)], options.out)
    return 0


HEADER = ("what", "a pass", "a step", "memory")
FORMULA = (
    "of GPT-2 6 x parameters + 12 x layers x width x context FLOPs a token (Chowdhery et al. 2022, appendix B), of "
    "ResNet-50 three times its forward pass, over the peak of dense bfloat16"
)


def line(what: str, speed: Speed, peak: float | None) -> tuple[str, ...]:
    mfu = speed.mfu(peak)
    return (
        what,
        f"{speed.micro}",
        f"{speed.units:,} in {speed.seconds * 1e3:.1f} ms",
        f"{speed.memory:.1f} GB",
        f"{speed.rate:,.0f}",
        f"{mfu:.1%}" if mfu is not None else "not known",
    )


def aims(reached: dict[str, float | None], options: argparse.Namespace) -> str:
    """What was aimed at and what was found, or that it was not measured."""
    rows = []
    for name in options.models:
        what, aim = AIMS[name]
        value = reached.get(name)
        measured = value is not None and not options.smoke
        verdict = ("met" if value >= aim else "not met") if measured and value is not None else "not measured"
        rows.append((name, what, f"at least {aim:,g}", f"{value:,.4g}" if measured else "-", verdict))
    return table(("aim", "figure", "wanted", "found", "verdict"), rows)


def not_measured(models: list[str]) -> str:
    return "not measured: " + ", ".join(f"{AIMS[m][0]} of {m}" for m in models)


def micro_batches(options: argparse.Namespace) -> list[int | None]:
    return [int(m) for m in options.micro_batch.split(",")] if options.micro_batch else [None]


def language_speed(name: str, micro: int | None, options: argparse.Namespace) -> Speed:
    with tempfile.TemporaryDirectory() as folder, flash_only(options):
        p = loop.prepared(name, overrides("gpt", micro, options), Path(folder), device_of(options))
        with torch.device("meta"):
            flops = p.config.model.training_flops(p.config.model.build(), 1)
        return timed(p, p.data.tokens_per_sample, flops, options)


def image_speeds(micro: int | None, options: argparse.Namespace) -> tuple[Speed, Speed, float, int, str]:
    """With loading, without, images per second of loading alone, workers, and what the images are."""
    with tempfile.TemporaryDirectory() as folder:
        images, what = options.images, f"images of {options.images and options.images.name}"
        if images is None:
            images = Path(folder) / "images"
            classes, train, size = (2, 4, (60, 45)) if options.smoke else (20, 128, (500, 375))
            write_images(images, classes, train, 2, size)
            what = (
                f"{classes * train:,} generated images of {size[0]}x{size[1]}, after the first epoch in the page cache"
            )
        asked = [f"dataset.path={images}", *overrides("resnet50", micro, options)]
        workers = 1 if options.smoke and options.workers is None else options.workers
        asked += [f"trainer.workers={workers}"] if workers is not None else []
        p = loop.prepared("resnet50", asked, Path(folder) / "loading", device_of(options))
        with torch.device("meta"):
            flops = p.config.model.training_flops(p.config.model.build(), 1)
        alone = loading_alone(p, options)
        ready = replace(p, facts=Ready(p), run_dir=Path(folder) / "ready")
        return timed(p, 1, flops, options), timed(ready, 1, flops, options), alone, p.config.trainer.workers or 0, what


def overrides(kind: str, micro: int | None, options: argparse.Namespace) -> list[str]:
    asked = [f"trainer.compile={str(not options.eager).lower()}"]
    asked += SMOKE[kind] if options.smoke else ["trainer.dtype=bfloat16"]
    return asked + ([f"trainer.micro_batch={micro}"] if micro else [])


def device_of(options: argparse.Namespace) -> str:
    return "cpu" if options.smoke else "cuda"


def flash_only(options: argparse.Namespace) -> Any:
    """On a GPU attention that cannot use the flash kernel fails, so that no other is measured in its name."""
    return contextlib.nullcontext() if options.smoke else sdpa_kernel(SDPBackend.FLASH_ATTENTION)


def timed(p: Prepared, per_sample: int, flops: float, options: argparse.Namespace) -> Speed:
    """The loop's mean step after the warm-up, in which it compiles."""
    done, begun, ended = 0, 0.0, 0.0
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    def after_step(_: float) -> bool:
        nonlocal done, begun, ended
        done += 1
        if done == options.warm_up:
            begun = now()
        if done == options.warm_up + options.steps:
            ended = now()
        return done == options.warm_up + options.steps

    loop.watch(p, after_step)
    size = p.config.batch.size
    memory = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    return Speed((ended - begun) / options.steps, size * per_sample, flops, p.splits[size].micro, memory)


def now() -> float:
    """Seconds, when the device has done all."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Ready:
    """The data set, but every training batch is the same bytes, which lie ready in memory."""

    def __init__(self, p: Prepared) -> None:
        micro = p.splits[p.config.batch.size].micro
        self.data = copy.copy(p.data)
        draw = np.random.default_rng(0)
        size = p.data.image_size
        images = draw.integers(0, 256, (micro, size, size, 3), np.uint8).transpose(0, 3, 1, 2)
        self.parts = images, draw.integers(0, p.data.classes, micro)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.data, name)

    def train_parts(self, seed: int, samples: Samples) -> tuple[np.ndarray, ...]:
        return tuple(a[: len(samples)] for a in self.parts)


def loading_alone(p: Prepared, options: argparse.Namespace) -> float:
    """Images per second that arrive on the device while nothing else happens."""
    micro = p.splits[p.config.batch.size].micro

    requests = (
        in_epochs(number * micro, micro, p.data.sizes["train"], p.config.seed)
        for number in range(options.warm_up + options.steps)
    )
    coming = train_batches(p.data, p.config.seed, requests, torch.device(device_of(options)))
    for _ in range(options.warm_up):
        next(coming)
    begun = now()
    for _ in range(options.steps):
        next(coming)
    seconds = now() - begun
    coming.close()
    return options.steps * micro / seconds


if __name__ == "__main__":
    sys.exit(main())
