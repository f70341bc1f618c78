"""A folder of checkpoints: which of its files and folders are some, and which step each is of."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from lawa_exp.formats.checkpoint import DCP, INDEX, WHOLE
from lawa_exp.formats.stored import SUFFIXES
from lawa_exp.storage.commit import steps_in
from lawa_exp.system.errors import UserError

TOKEN = re.compile(r"(?P<number>\d+(?:\.\d+)*(?:[eE][-+]\d+)?)|(?P<word>[A-Za-z]+)")
STEP = re.compile(r".*(step|iter|iteration|update)s?", re.IGNORECASE)
COUNTER = re.compile(
    r"epochs?|ep|it|itr|rounds?|ba|batch(es)?|samples|tokens|images|kimg|ckpt|checkpoint|snapshot", re.IGNORECASE
)
KEY = re.compile(r"[ent]", re.IGNORECASE)  # these count before `=` alone
METRIC = re.compile(
    r".*(loss|acc|accuracy|error|score)|err|metric|val|valid|auc|auroc|iou|miou|dice|precision|recall|psnr|"
    r"ssim|fid|bleu|rouge|ppl|perplexity|bpb|bpc|nll|wer|cer|mse|rmse|mae|reward",
    re.IGNORECASE,
)
NUMBERED_METRIC = re.compile(r"top|f|map|ap", re.IGNORECASE)  # top1, F1, mAP50
SETTING = re.compile(r"lr|wd|bs|dropout|seed|fold|rank|gpu|v|ver|version|fp|bf|int", re.IGNORECASE)


def find_checkpoints(folder: Path, key: str) -> dict[int, Path]:
    """The checkpoints in `folder` by their step, ascending; what has no step in its name is passed over.

    Snapshots of one of our runs are those that were committed. A folder that holds a single file is that file. Where no
    name has a step, or two have the same, Lightning's files say theirs.
    key: names the folder in messages. UserError: there is none, or two are of one step.
    """
    if not folder.is_dir():
        raise UserError(f"{key}={folder}: no such folder")
    found = steps_in(folder)
    if found:
        return found
    numbered = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and re.search(r"\d", p.name)]
    opened = [checkpoint_in(p) if p.is_dir() else p if p.name.endswith(SUFFIXES) else None for p in numbered]
    paths = [(entry, path) for entry, path in zip(numbered, opened, strict=True) if path is not None]
    named = [step_in(entry.name) for entry, _ in paths]
    known = [step for step in named if step is not None]
    unclear = not known or len(set(known)) < len(known)
    inside = steps_inside([path for _, path in paths]) if unclear else None
    for step, (_, path) in zip(inside or named, paths, strict=True):
        if step is None:
            continue
        if step in found:
            raise UserError(
                f"{key}={folder}: {found[step].relative_to(folder)} and {path.relative_to(folder)} are both of "
                f"step {step:,}; leave one of them in the folder"
            )
        found[step] = path
    if not found:
        raise UserError(
            f"{key}={folder}: no checkpoints there: files ({', '.join(SUFFIXES)}) or folders of them with the step in "
            "their names (ckpt_1000.pt, epoch=3-val_loss=0.12.ckpt, step_00001000/)"
        )
    return dict(sorted(found.items()))


def step_in(name: str) -> int | None:
    """The number after `step`, `iter` or `update`; else the last one that may count something; None without.

    None of these may: a decimal, what stands behind a metric up to the next word that counts, a setting's own number
    (`lr0.1`, `seed1`), and what stands behind the `=` of any other key. `resnet18` and `fold_2` are taken only where
    nothing else is there.
    """
    after_step: list[int] = []
    loose: list[int] = []
    weak: list[int] = []
    owned = counts = False  # whether a metric owns the numbers that follow, and whether the word before counts
    word = ""
    for token in TOKEN.finditer(name):
        if token["word"]:
            word = token["word"]
            is_key = name[token.end() :][:1] == "=" and KEY.fullmatch(word) is not None
            counts = is_key or any(words.fullmatch(word) for words in (STEP, COUNTER))
            owned = not counts and bool(owned or METRIC.fullmatch(word) or (loose and NUMBERED_METRIC.fullmatch(word)))
            continue
        before = name[: token.start()][-1:]
        if not owned and token["number"].isdigit() and (counts or before != "="):
            is_setting = SETTING.fullmatch(word) is not None
            if STEP.fullmatch(word):
                after_step.append(int(token["number"]))
            elif not NUMBERED_METRIC.fullmatch(word) and not (is_setting and before.isalpha()):
                is_weak = is_setting or (before.isalpha() and not counts)
                (weak if is_weak else loose).append(int(token["number"]))
        word, counts = "", False
    numbers = after_step or loose or weak
    return numbers[-1] if numbers else None


def steps_inside(paths: list[Path]) -> list[int] | None:
    """The `global_step`, else the `epoch`, of Lightning's files; None where one has none, or two have the same."""
    entries = [_lightning(path) for path in paths]
    for field in ("global_step", "epoch"):
        steps = [number for content in entries if type(number := content.get(field)) is int]
        if paths and len(set(steps)) == len(paths):
            return steps
    return None


def _lightning(path: Path) -> dict[str, object]:
    """The plain entries of a Lightning checkpoint; empty for anything else."""
    if path.suffix != ".ckpt" or not path.is_file():
        return {}
    stat = path.stat()
    return _plain_entries(path, stat.st_mtime_ns, stat.st_size)


@cache  # the command asks several times
def _plain_entries(path: Path, modified: int, size: int) -> dict[str, object]:
    from lawa_exp.formats.pytorch import TorchFile  # takes milliseconds

    try:
        content = TorchFile(path).content
    except UserError:  # it says so when it is read
        return {}
    if "pytorch-lightning_version" not in content:
        return {}
    return {field: content.get(field) for field in ("global_step", "epoch")}


def checkpoint_in(folder: Path) -> Path | None:
    """What a folder holds: itself where it is a checkpoint, the only file that may be one, or None."""
    if any((folder / name).is_file() for name in (*WHOLE, *(f"{w}{INDEX}" for w in WHOLE), DCP)):
        return folder
    files = [p for p in sorted(folder.iterdir()) if p.name.endswith(SUFFIXES)]
    return files[0] if len(files) == 1 else None
