"""What a folder holds: the checkpoint in it, and besides its model further models, and files that are copied along.

A folder's parts are subfolders that a library's own list names, as sentence-transformers' modules.json and diffusers'
model_index.json do. Other subfolders with weights are checkpoints of their own (a Trainer's checkpoint-500/).
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from lawa_exp.formats.about import FILE
from lawa_exp.formats.names import named
from lawa_exp.formats.stored import SUFFIXES, read_list, reading
from lawa_exp.storage.commit import MANIFEST
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import LARGE, SMALL, size_text

WHOLE = (  # a folder's only file of weights: transformers', diffusers', open_clip's, PEFT's
    *("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    *("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "adapter_model.safetensors", "adapter_model.bin"),
)
DCP = ".metadata"  # of torch.distributed.checkpoint
OF_OPTIMIZERS = r"opt(im)?|optimizers?|schedulers?|scaler"
NO_WEIGHTS = re.compile(OF_OPTIMIZERS + r"|rng|random|sampler|train(er|ing)?|args|data(loader)?", re.IGNORECASE)
RANK = re.compile(r"(?:^|[_.-])rank[_-]?(\d+(?:_\d+)*)")
INDEX = ".index.json"  # of a folder's shards: {"weight_map": {tensor: file}}
LISTS = ("modules.json", "router_config.json", "model_index.json")  # sentence-transformers' two, diffusers'
FURTHER = re.compile(r"(model|pytorch_model)_\d+(\.safetensors|\.bin)")  # accelerate's second model, and so on
CARRIED = {".json", ".txt", ".model", ".py", ".jinja", ".tiktoken", ".bpe"}  # configuration and tokenizer files
NOT_CARRIED = {MANIFEST, FILE, "trainer_state.json", "optimizer.json"}
OF_TRAINING = re.compile(r"(^|[_.-])(results?|metrics?|logs?|history|requirements)(?=[_.-])")  # in the name of a text
LICENCE = re.compile(r"(LICEN[CS]E|NOTICE|COPYING)[-\w]*(\.txt|\.md)?", re.IGNORECASE)
CARRIED_FOLDER = re.compile(r"tokenizer|processor|extractor|chat_templates")  # in the name of one that no list names
OF_OTHERS = {  # weights that are not read here, by the ends of their names
    ".h5": "a file of Keras",
    ".keras": "a file of Keras",
    ".msgpack": "a file of Flax",
    ".onnx": "a file of ONNX",
    ".ot": "a file of rust-bert",
    ".gguf": "a file of llama.cpp",
    ".nemo": "an archive of NeMo",
    ".distcp": "a part of a DCP folder",
}
OF_ORBAX = ("_CHECKPOINT_METADATA", "_METADATA")  # in its folders, or the folders in them
SHOWN = 3  # of several checkpoints in a folder, in a message
MOST = 1000  # files in a subfolder that is copied along


def checkpoint_in(folder: Path, depth: int = 2) -> Path | None:
    """What a folder holds: itself where it is a checkpoint, the only file or folder that may be one, or None.

    Optimizers and the like do not count; averages and ranks do where there is nothing else. depth: of the subfolders
    that are looked at; one with a number in its name is no part of its folder, but that of the only rank, and DCP's.
    UserError: a list of the folder's parts cannot be read.
    """
    if any(_is_whole(each) for each in (folder, *parts_of(folder))):
        return folder
    chosen = _choices(folder, depth)
    return chosen[0] if len(chosen) == 1 else None


def _choices(folder: Path, depth: int) -> list[Path]:
    """The files and subfolders of which each may be the folder's checkpoint."""
    found: dict[str, Path] = {}
    for entry in sorted(p for p in folder.iterdir() if not _is_of_training(p.name)):
        if entry.is_file():
            path = entry if entry.name.endswith(SUFFIXES) else None
        else:
            path = checkpoint_in(entry, depth - 1) if depth and _may_hold(entry) else None
        if path:
            found[entry.name] = path
    for is_second in (lambda name: named(name).is_average, _is_of_a_rank):
        found = {name: path for name, path in found.items() if not is_second(name)} or found
    return list(found.values())


def _is_whole(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*WHOLE, *(f"{w}{INDEX}" for w in WHOLE), DCP))


def _may_hold(folder: Path) -> bool:
    if not folder.is_dir() or folder.is_symlink() or (name := named(folder.name)).is_average:
        return False
    is_sharded = (folder / DCP).is_file() and not name.is_labelled  # as Trainer's pytorch_model_fsdp_0/
    return is_sharded or _is_of_a_rank(folder.name) or re.search(r"\d", folder.name) is None


def _is_of_a_rank(name: str) -> bool:
    """Megatron-LM's mp_rank_00/, DeepSpeed's and verl's files."""
    return RANK.search(name) is not None and not named(name).counts


def _is_of_training(name: str) -> bool:
    """By its words; Megatron-LM's model_optim_rng.pt has the weights, too."""
    words = re.findall("[A-Za-z]+", name)
    if words[:1] == ["model"]:
        return words[:3] != ["model", "optim", "rng"] and any(re.fullmatch(OF_OPTIMIZERS, word) for word in words)
    return words[:2] == ["extra", "state"] or any(NO_WEIGHTS.fullmatch(word) for word in words)


def not_read(path: Path) -> str:
    """Whose format a file or folder has that is not read here; empty where that is not known."""
    if not path.is_dir():
        return next((whose for end, whose in OF_OTHERS.items() if path.name.endswith(end)), "")
    places = (path, *(p for p in path.iterdir() if p.is_dir()))
    return "a folder of Orbax (JAX)" if any((p / name).is_file() for p in places for name in OF_ORBAX) else ""


def why_none(folder: Path) -> str:
    """Why `checkpoint_in` gives nothing; empty where nothing in it looks like a checkpoint."""
    if whose := not_read(folder):
        return f"{whose}, which is not read"
    for place in (folder, *(p for p in sorted(folder.iterdir()) if not _is_of_training(p.name) and _may_hold(p))):
        chosen = _choices(place, 2 if place == folder else 1)
        if len({tuple(RANK.findall(str(p.relative_to(place)))) for p in chosen}) > 1 and all(
            _is_of_a_rank(p.relative_to(place).parts[0]) for p in chosen
        ):
            return "a model that is split over ranks: merge it first, by a tool of its trainer"
        if len(chosen) > 1:
            names = [str(p.relative_to(folder)) for p in chosen]
            shown = [*names[:SHOWN], f"{len(names) - SHOWN} more"] if len(names) > SHOWN + 1 else names
            kind = "files" if all(p.is_file() for p in chosen) else "folders"
            return f"a folder that holds {', '.join(shown[:-1])} and {shown[-1]}; list the {kind} of one"
    return ""


def parts_of(folder: Path) -> list[Path]:
    """The subfolders that the folder's lists name. UserError: a list cannot be read."""
    names: set[str] = set()
    for path in (folder / name for name in LISTS):
        if path.is_file():
            with reading(path):
                names.update(_texts(read_list(path)))
    entries = sorted(folder.iterdir()) if names else []
    return [p for p in entries if p.name in names and p.is_dir() and not p.is_symlink()]


def further_models(folder: Path, first: Collection[Path]) -> list[Path]:
    """accelerate's files of a second model and others, next to `first`, that of the first."""
    found = ((p, FURTHER.fullmatch(p.name)) for p in sorted(folder.iterdir()))
    return [p for p, match in found if match and p.is_file() and folder / f"{match[1]}{match[2]}" in first]


def carried_in(folder: Path) -> dict[str, Path]:
    """The files of a checkpoint's folder that are copied along, not of its subfolders, by name."""
    return {p.name: p for p in sorted(folder.iterdir()) if _is_carried(p)}


def others_in(
    folder: Path, taken: Collection[Path], parts: Collection[Path], place: str = ""
) -> tuple[dict[str, Path], list[str]]:
    """The files that are copied along, by their place in the folder, and what is not: weights, subfolders, results.

    taken: files of weights that are averaged. parts: as `parts_of`. place: of the folder in the whole.
    """
    files, left_out = {f"{place}{name}": path for name, path in carried_in(folder).items()}, []
    for entry in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
        if entry in parts:
            more, others = others_in(entry, taken, (), f"{place}{entry.name}/")
        elif entry.is_dir():
            small = None if entry.is_symlink() else _small(entry, f"{place}{entry.name}/")
            is_needed = small is not None and (CARRIED_FOLDER.search(entry.name) or _is_code(small))
            more = small if small and is_needed else {}
            others = [] if more or small == {} else [f"{place}{entry.name}/"]
        else:
            is_left_out = (_has_weights(entry.name) and entry not in taken) or _is_of_results(entry.name)
            more, others = {}, [f"{place}{entry.name}"] if is_left_out else []
        files |= more
        left_out += others
    return files, sorted(left_out, key=_is_of_results)


def check_carried(file: Path, folder: Path) -> None:
    """UserError: the file would be copied from outside of the checkpoint's folder, or is too large for what it is."""
    if file.is_symlink() and _leads_out(file, folder):
        raise UserError(f"{file} is a link that leads out of its folder, and is not copied: put the file itself there")
    if file.stat().st_size > LARGE:
        raise UserError(f"{file} has {size_text(file.stat().st_size)}, expected at most {size_text(LARGE)}")


def _leads_out(file: Path, folder: Path) -> bool:
    """Whether a link leads neither into the folder nor to a file in a cache of the Hugging Face hub.

    There the files of a model are links to models--NAME/blobs/HASH.
    """
    target = file.resolve()
    in_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith(("models--", "spaces--"))
    return not in_cache and not target.is_relative_to(folder.resolve())


def _small(folder: Path, place: str) -> dict[str, Path] | None:
    """The files of a subfolder that are copied along; None where it holds weights, or much."""
    files: dict[str, Path] = {}
    size = number = 0
    for at, inner, names in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        for file in (Path(at, name) for name in sorted(names)):
            number += 1
            if _has_weights(file.name) or number > MOST:
                return None
            if _is_carried(file):
                size += file.stat().st_size
                files[f"{place}{file.relative_to(folder).as_posix()}"] = file
        if size > SMALL:
            return None
    return files


def _is_code(files: Collection[str]) -> bool:
    return all(name.endswith(".py") for name in files)


def _is_carried(file: Path) -> bool:
    is_text = file.suffix in CARRIED and not _is_of_results(file.name) and not file.name.endswith(INDEX)
    is_named = LICENCE.fullmatch(file.name) or (is_text and file.name not in NOT_CARRIED)
    return bool(is_named) and file.is_file()


def _is_of_results(name: str) -> bool:
    return name.endswith((".json", ".txt")) and OF_TRAINING.search(name) is not None


def _has_weights(name: str) -> bool:
    """By its name; what is of a training's state says so in it."""
    return name.endswith(tuple(OF_OTHERS)) or (name.endswith(SUFFIXES) and not _is_of_training(name))


def _texts(content: object) -> Iterator[str]:
    """All keys and texts in a value of JSON."""
    stack = [content]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            stack += [*value, *value.values()]
        elif isinstance(value, list):
            stack += value
