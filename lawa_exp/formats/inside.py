"""What a checkpoint says of itself: the updates and epochs it comes after, and whether it is an average.

Only headers are read: the head of a Trainer's trainer_state.json, the metadata of safetensors, the pickle of a PyTorch
file (whose names are not looked up). Of a DCP folder nothing is, as that needs torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from lawa_exp.formats.about import FILE
from lawa_exp.formats.names import EPOCHS, UPDATES
from lawa_exp.formats.stored import ABOUT
from lawa_exp.system.files import SMALL, read_small, read_text

FIELDS = {  # where libraries keep them; the first that is there
    UPDATES: (
        "global_step",  # Lightning, and many loops
        "global_steps",  # DeepSpeed
        "step_count",  # LitGPT, whose iter_num counts micro-batches
        "iter_num",  # nanoGPT
        "iteration",  # Megatron-LM, Detectron2
        "batch_idx_train",  # icefall
        "num_updates",
        "step",
        "ss_steps",  # kohya's safetensors
        "meta.iter",  # mmengine
        "optimizer_history.-1.num_updates",  # fairseq
        "optim.training_step",  # OpenNMT-py
        "state.timestamp.batch",  # Composer
    ),
    EPOCHS: (
        "epoch",  # timm, torchvision, Lightning
        "current_epoch",  # nnU-Net
        "cur_epoch",  # icefall
        "epochs_run",  # torchtune
        "ss_epoch",
        "meta.epoch",
        "extra_state.train_iterator.epoch",
        "state.timestamp.epoch",
    ),
}
TRAINER_STATE = "trainer_state.json"  # of Hugging Face's Trainer; its keys are sorted, and the long one comes later
HEAD = 1 << 14  # bytes


@dataclass(frozen=True)
class Inside:
    """counts: by unit; fields: where each was. average: what says that it is one; no_weights: what it is instead.

    live: the key of the live weights in a file whose usual state dict is an average.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    fields: Mapping[str, str] = field(default_factory=dict)
    average: str = ""
    no_weights: str = ""
    live: str = ""


def inside(path: Path) -> Inside:
    """Of a file, or of a folder that is a checkpoint. What cannot be read says nothing, and is named when it is."""
    parts = [path] if path.is_file() else _telling_files(path)
    if path.is_file() and _is_in_record(path):
        parts.append(path.with_name(FILE))
    read = [_of_file(p, p.stat().st_mtime_ns, p.stat().st_size) for p in parts]
    counts: dict[str, int] = {}
    fields: dict[str, str] = {}
    for each in read:
        counts = {**each.counts, **counts}
        fields = {**each.fields, **fields}
    average = next((each.average for each in read if each.average), "")
    return replace(read[0], average=average) if path.is_file() else Inside(counts, fields, average)


def _is_in_record(path: Path) -> bool:
    """Whether a file next to it says that it is an average."""
    record = path.with_name(FILE)
    if not record.is_file():
        return False
    try:
        return path.name in json.loads(read_small(record, SMALL))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _telling_files(folder: Path) -> list[Path]:
    """A folder's files that may say something, the surest first."""
    names = (TRAINER_STATE, FILE, "model.safetensors", "pytorch_model.bin")
    shards = sorted(folder.glob("*-00001-of-*"))[:1]
    return [p for p in (*(folder / name for name in names), *shards) if p.is_file()]


@cache  # a command asks several times
def _of_file(path: Path, modified: int, size: int) -> Inside:
    try:
        if path.name == TRAINER_STATE:
            with path.open() as file:
                match = re.search(r'^ *"global_step": (\d+)', file.read(HEAD), re.MULTILINE)
            found = int(match[1]) if match else None
            return Inside({UPDATES: found}, {UPDATES: f"global_step in {TRAINER_STATE}"}) if found else Inside()
        with path.open("rb") as file:
            head = file.read(9)
            if path.name == FILE:
                return Inside(average=about_text(read_text(path, SMALL)))
            if head[8:] == b"{":
                return _of_safetensors(path)
            return _of_pickled(path) if head[:2] in (b"PK", b"\x80\x02") else Inside()
    except Exception:  # a damaged file can raise anything, and is refused with its name where it is averaged
        return Inside()


def _of_safetensors(path: Path) -> Inside:
    from lawa_exp.formats.safetensors import SafetensorsFile

    metadata = SafetensorsFile(path).metadata or {}
    found = _of_content({key: int(text) for key, text in metadata.items() if text.isdecimal() and len(text) < 19})
    return replace(found, average=about_text(metadata.get(ABOUT, "")))


def _of_pickled(path: Path) -> Inside:
    from lawa_exp.formats.pickled import content_of  # with zipfile and pickle takes milliseconds

    content, about = content_of(path)
    found = _of_content(content)
    return replace(found, average=about_text(about) or found.average)


def _of_content(content: object) -> Inside:
    if not isinstance(content, Mapping):
        return Inside(no_weights="no dictionary of weights")
    counts, fields = {}, {}
    for unit, places in FIELDS.items():
        for place in places:
            value = _at(content, place.split("."))
            if type(value) is int and value >= 0:
                counts[unit], fields[unit] = value, place
                break
    is_optimizer = "param_groups" in content and content.keys() <= {"state", "param_groups"}
    average, live = _averaged_by(content)
    return Inside(counts, fields, average, "an optimizer's state" if is_optimizer else "", live)


def _at(content: object, keys: list[str]) -> object:
    for key in keys:
        if isinstance(content, Mapping):
            content = content.get(key)
        elif isinstance(content, list | tuple) and content and key == "-1":
            content = content[-1]
        else:
            return None
    return content


def _averaged_by(content: Mapping[object, object]) -> tuple[str, str]:
    """Whose average the state dict is, and the key of the live weights; empty where it is none."""
    meta = content.get("meta")
    inner = (content, *(content.get(key) for key in ("model", "state_dict", "model_state_dict")))
    if "averaging_state" in content and "current_model_state" in content:
        whose, live = "Lightning's WeightAveraging", "current_model_state"
    elif "ema_state_dict" in content and isinstance(meta, Mapping) and "mmengine_version" in meta:
        whose, live = "mmengine's EMAHook", "ema_state_dict"
    elif any(isinstance(weights, Mapping) and "n_averaged" in weights for weights in inner):
        whose, live = "torch's AveragedModel", ""
    else:
        return "", ""
    return f"an average by {whose}" + (f", whose live weights are in {live}" if live else ""), live


def about_text(text: str) -> str:
    """What our own metadata says of an average, for messages."""
    try:
        about = json.loads(text) if text else None
        return f"an average of ours ({about['averager']} of {about['inputs']} checkpoints)" if about else ""
    except (ValueError, KeyError, TypeError):
        return "an average of ours"
