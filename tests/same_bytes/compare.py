"""What two sides left in their folders, fact by fact, and which differences are stated."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

# Not deterministic by contract: times, hosts, errors with their traces, drawings, Hydra's own file with its paths.
# Dotfiles: locks, heartbeats, and checksums, which follow from the files.
IGNORED = ("timing.jsonl", "provenance.jsonl", "errors.jsonl", ".*", "*.png", "multirun.yaml", "wandb")
MARKERS = ("DONE", "FAILED", "DIVERGED", "STOPPED")
ROW_KEYS = ("step", "split", "weights", "view", "task", "metric")  # what a row is about
WHOLE = "(bytes)"  # the fact that stands for a whole file
LAYOUT = "(layout)"  # the same tensors of a state, in other files or under other names

Facts = dict[str, str]  # "path:what": its value
Pair = tuple[str | None, str | None]  # of the two sides; None: not there


@dataclass
class Stated:
    """A deliberate difference: globs of the facts that differ, in configurations of these names.

    took_over: globs of facts of rows, and the field that has to hold their values since.
    """

    configuration: str
    differs: list[str]
    reason: str
    since: str
    took_over: dict[str, str] = field(default_factory=dict)
    used: bool = field(default=False, init=False)

    def covers(self, configuration: str, fact: str) -> bool:
        return fnmatchcase(configuration, self.configuration) and any(fnmatchcase(fact, g) for g in self.differs)


def contents(folder: Path, renamed: Mapping[str, str] | None = None) -> Facts:
    """Every fact in a folder. renamed: new to old spelling, of overrides that text files repeat."""
    facts: Facts = {}
    names = _without_ids(folder)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        relative = path.relative_to(folder)
        if any(fnmatchcase(part, glob) for part in relative.parts for glob in IGNORED):
            continue
        run = next((p for p in path.parents if p in names), None)
        name = f"{names[run]}/{path.relative_to(run)}" if run else str(relative)
        data = path.read_bytes()
        for new, old in (renamed or {}).items() if path.suffix != ".safetensors" else ():
            data = data.replace(new.encode(), old.encode())
        facts |= {f"{name}:{what}": value for what, value in _facts_of(path.name, data)}
    return facts


def _without_ids(folder: Path) -> dict[Path, str]:
    """Names of run directories without the trajectory's id, which is a fact of its own, where they stay different."""
    found = {}
    for path in folder.rglob("config.yaml"):
        id = str(yaml.safe_load(path.read_bytes()).get("trajectory_id"))
        if path.parent.name.endswith("-" + id):
            found[path.parent] = str(path.parent.relative_to(folder)).removesuffix(id) + "ID"
    times = Counter(found.values())
    return {run: name for run, name in found.items() if times[name] == 1}


def _facts_of(name: str, data: bytes) -> Iterator[tuple[str, str]]:
    if name == "config.yaml":
        content = yaml.safe_load(data)
        yield from flat({key: content.get(key) for key in ("trajectory_id", "identity")})
    elif name in MARKERS:
        yield "step", str(json.loads(data).get("step"))
    elif name == "manifest.json" and "entries" in (content := json.loads(data)):  # a sweep's
        yield from flat(content["entries"])
    elif name == "manifest.json":  # sizes and checksums follow from the files
        yield from ((file, " ".join(sorted(entry))) for file, entry in content.items())
    else:
        yield WHOLE, hashlib.sha256(data).hexdigest()[:12]
        if name.endswith(".safetensors"):
            yield from _tensors(data)
        elif name.endswith(".pt"):
            yield from _saved(data)
        elif name.endswith(".jsonl"):
            yield from _rows(data)
        elif name.endswith(".json"):
            yield from flat(json.loads(data))


def _tensors(data: bytes) -> Iterator[tuple[str, str]]:
    begin = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:begin]).items():
        if name != "__metadata__":
            first, last = (begin + offset for offset in entry["data_offsets"])
            yield name, f"{entry['dtype']}{entry['shape']} {hashlib.sha256(data[first:last]).hexdigest()[:12]}"


def _saved(data: bytes) -> list[tuple[str, str]]:
    """Tensors and values that torch.save wrote; nothing of a file with other objects."""
    import torch

    def described(value: Any) -> str:
        if not isinstance(value, torch.Tensor):
            return repr(value)
        content = value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()
        return f"{value.dtype}{list(value.shape)} {hashlib.sha256(content).hexdigest()[:12]}"

    try:
        return list(flat(torch.load(io.BytesIO(data), "cpu", weights_only=True), default=described))
    except Exception:  # whatever torch finds in bytes that are none of its own
        return []


def _rows(data: bytes) -> Iterator[tuple[str, str]]:
    times: Counter[str] = Counter()
    for row in map(json.loads, data.splitlines()):
        about = " ".join(str(row[key]) for key in ROW_KEYS if key in row)
        times[about] += 1
        about += f" #{times[about]}" if times[about] > 1 else ""
        yield from ((f"row {about}:{key}", json.dumps(value)) for key, value in row.items())


def flat(content: Any, key: str = "", default: Callable[[Any], str] | None = None) -> Iterator[tuple[str, str]]:
    """Every value in nested mappings and lists, by its dotted key. default: for what JSON does not have."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    if not inside:
        yield key, json.dumps(content, default=default)
    for name, value in inside:
        yield from flat(value, f"{key}.{name}" if key else str(name), default)


def carried(configuration: str, theirs: Facts, stated: list[Stated]) -> Facts:
    """Facts of the older side, with its values in the fields that took over as well."""
    globs = {g: new for s in stated if fnmatchcase(configuration, s.configuration) for g, new in s.took_over.items()}
    new = {f"{f.rpartition(':')[0]}:{globs[g]}": theirs[f] for g in globs for f in theirs if fnmatchcase(f, g)}
    return new | theirs


def difference(theirs: Facts, ours: Facts) -> dict[str, Pair]:
    """Facts that differ. A file that one side lacks is one fact, and so is a state whose layout alone differs."""
    differ = [fact for fact in theirs | ours if theirs.get(fact) != ours.get(fact)]  # rows in the order of time
    found: dict[str, Pair] = {}
    for state in sorted({s for fact in differ if (s := _state_of(fact))}):
        moved = _moved([f for f in differ if _state_of(f) == state], theirs, ours)
        if moved:
            found[f"{state}:{LAYOUT}"] = (f"{len(moved) // 2} tensors", "elsewhere")
            differ = [f for f in differ if f not in moved and not (f.startswith(f"{state}/") and _derived(f))]
    paths = [{fact.partition(":")[0] for fact in side} for side in (theirs, ours)]
    for fact in differ:
        path = fact.partition(":")[0]
        if path not in paths[0] or path not in paths[1]:
            found[path] = ("is there", None) if path in paths[0] else (None, "is there")
        else:
            found[fact] = theirs.get(fact), ours.get(fact)
    detailed = {f.partition(":")[0] for f in found if not f.endswith(f":{WHOLE}")}
    return {f: pair for f, pair in found.items() if not (f.endswith(f":{WHOLE}") and f.partition(":")[0] in detailed)}


def _derived(fact: str) -> bool:
    return fact.endswith(f":{WHOLE}") or fact.partition(":")[0].endswith("/manifest.json")


def _state_of(fact: str) -> str | None:
    """The folder of the state that a fact is in."""
    parts = fact.partition(":")[0].split("/")
    at = next((i for i, part in enumerate(parts[:-2]) if part in ("resume", "states")), None)
    return None if at is None else "/".join(parts[: at + 2])


def _moved(differ: list[str], theirs: Facts, ours: Facts) -> set[str]:
    """Tensors of a state that both sides have, but each in another place."""
    places: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for fact in differ:
        if ".safetensors:" in fact and not _derived(fact) and (fact in theirs) != (fact in ours):
            (places[theirs[fact]][0] if fact in theirs else places[ours[fact]][1]).append(fact)
    pairs = [pair for left, right in places.values() for pair in zip(left, right, strict=False)]
    return {fact for pair in pairs for fact in pair}


def judge(configuration: str, differ: Mapping[str, Pair], stated: list[Stated]) -> tuple[dict[str, int], list[str]]:
    """How many facts each reason explains, and the facts that none does."""
    reasons: Counter[str] = Counter()
    red = []
    for fact in differ:
        why = [s for s in stated if s.covers(configuration, fact)]
        for s in why:
            s.used = True
        if why:
            reasons[f"{why[0].reason} ({why[0].since})"] += 1
        else:
            red.append(fact)
    return dict(reasons), red
