"""`python -m same_bytes COMMIT`, in tests/; what it does and how it is used is in __init__.py."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import same_bytes

from .compare import Pair, Stated, carried, difference, judge
from .configured import Configuration, Renamed, configurations, differences
from .sides import WARM, export, run_side

HERE = Path(__file__).parent
SHOWN = 8  # paths of a red configuration


@dataclass(frozen=True)
class Compared:
    differ: Mapping[str, Pair]
    wrong: list[str]  # on the newer side, whatever the older one does
    facts: int


@dataclass(frozen=True)
class Comparison:
    """Two sides, the older one first."""

    folder: Path
    sides: tuple[Path, Path]
    renamed: list[Renamed]
    stated: list[Stated]

    def runs(self, configuration: Configuration, side: Path) -> Path:
        return self.folder / "runs" / configuration.name / side.name

    def __call__(self, configuration: Configuration) -> Compared | None:
        """Runs both sides, one after the other at one path; None: the older one cannot run it."""
        if not (self.sides[0] / configuration.needs).exists():
            return None
        found, now = [], self.folder / "now" / configuration.name
        for side in self.sides:
            kept = self.runs(configuration, side)
            found.append(run_side(configuration, side, now, kept / "log", self.renamed))
            now.rename(kept / "files")
        wrong = []
        for number, command in enumerate(configuration.commands, 1):
            code = found[1][f"command {number}:exit code"]
            if code != str(command.ends):
                err = self.runs(configuration, self.sides[1]) / "log" / f"{number}.err"
                said = "".join(f": {line}" for line in err.read_text().splitlines()[-1:])
                wrong.append(f"command {number} ended with {code}, expected {command.ends}{said}")
        if not any(".safetensors:" in fact or ".jsonl:" in fact for fact in found[1]):
            wrong.append("nothing was trained or read out: there is nothing to compare")
        theirs = carried(configuration.name, found[0], self.stated)
        return Compared(difference(theirs, found[1]), wrong, len(found[1]))


def telling(path: str) -> tuple[bool, bool, str]:
    """A key that puts exit codes, ids and rows before tensors."""
    return not path.startswith("command "), not path.endswith((".yaml", ".jsonl")), path


def told(configuration: Configuration, compared: Compared | None, stated: list[Stated]) -> tuple[str, list[str]]:
    """How it went, in a word or three, and the lines that say so."""
    if compared is None:
        return "new", [f"{'new':<18} {configuration.name}: needs {configuration.needs}, which the older side lacks"]
    reasons, red = judge(configuration.name, compared.differ, stated)
    if red or compared.wrong:
        lines = [f"{'RED':<18} {configuration.name}: {len(red)} of {compared.facts:,} facts differ unstated"]
        lines += [f"    {line}" for line in compared.wrong]
        of: dict[str, list[str]] = {}
        for fact in red:
            of.setdefault(fact.partition(":")[0], []).append(fact)
        for path in sorted(of, key=telling)[:SHOWN]:
            theirs, ours = ("not there" if value is None else value for value in compared.differ[of[path][0]])
            more = f"  (and {len(of[path]) - 1} more in it)" if len(of[path]) > 1 else ""
            lines.append(f"    {of[path][0]}  {theirs} -> {ours}{more}")
        return "RED", lines + ([f"    and {len(of) - SHOWN} more paths"] if len(of) > SHOWN else [])
    if reasons:
        lines = [f"{'differs as stated':<18} {configuration.name}: {compared.facts:,} facts"]
        return "as stated", lines + [f"    {times} facts: {reason}" for reason, times in reasons.items()]
    return "same", [f"{'same':<18} {configuration.name}: {compared.facts:,} facts"]


def main(arguments: list[str], checkout: Path = HERE.parents[1], lists: Path = HERE) -> int:
    """lists: the folder of configurations.yaml and differences.yaml."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("same_bytes", description=same_bytes.__doc__, formatter_class=raw)
    parser.add_argument("ref", help="a commit")
    parser.add_argument("--against", metavar="REF", help="another commit in place of this checkout")
    parser.add_argument("--only", default="*", metavar="NAME,...", help="configurations; stars are allowed")
    parser.add_argument("--jobs", type=int, default=2, help="configurations at a time (default: 2)")
    asked = parser.parse_args(arguments)
    every = configurations((lists / "configurations.yaml").read_text())
    chosen = [c for c in every if any(fnmatchcase(c.name, glob) for glob in asked.only.split(","))]
    if not chosen:
        parser.error(f"--only {asked.only}: none of {', '.join(c.name for c in every)}")
    stated, renamed = differences((lists / "differences.yaml").read_text())
    folder = Path(tempfile.mkdtemp(prefix="same-bytes-"))
    try:
        sides = [export(checkout, c, folder / n) for n, c in (("ref", asked.ref), ("tree", asked.against))]
    except ValueError as error:
        shutil.rmtree(folder)
        parser.error(str(error))
    return compare_all(Comparison(folder, (sides[0], sides[1]), renamed, stated), chosen, asked.jobs)


def compare_all(comparison: Comparison, chosen: list[Configuration], jobs: int) -> int:
    times: Counter[str] = Counter()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        for configuration, compared in zip(chosen, pool.map(comparison, chosen), strict=True):
            how, lines = told(configuration, compared, comparison.stated)
            times[how] += 1
            print("\n".join(lines), flush=True)
            if how != "RED":
                shutil.rmtree(comparison.folder / "runs" / configuration.name, ignore_errors=True)
    for s in comparison.stated:
        if not s.used and any(fnmatchcase(c.name, s.configuration) for c in chosen):
            print(f"warning: stale, nothing differs so: {s.configuration}: {', '.join(s.differs)} ({s.since})")
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(u.ru_utime + u.ru_stime for u in used)
    counted = ", ".join(f"{n} {how}" for how, n in times.items())
    print(f"{len(chosen)} configurations: {counted}; {seconds:.0f} seconds of CPU", flush=True)
    if times["RED"]:
        print(f"the runs and the output of what is red: {comparison.folder / 'runs'}")
    else:
        shutil.rmtree(comparison.folder)
    return int(times["RED"] > 0)


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    for module in WARM:
        importlib.import_module(module)
    sys.exit(main(sys.argv[1:]))
