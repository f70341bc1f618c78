"""One training, or the trainings of a multirun one after another: entries that share a trajectory are one training."""

from __future__ import annotations

import functools
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from lawa_exp import distributed, signals
from lawa_exp.config import Config, Failed, Options, UserError
from lawa_exp.files import write_text_atomically
from lawa_exp.run import EXIT, command, execute, merge, prepare, show_plan, start_device
from lawa_exp.summary import summarise


def run_one(config: Config, options: Options) -> int:
    """Trains or plans one configuration; returns the exit code."""
    device, ranks = start_device(config.trainer.device)
    prepared = prepare(config, options, device, ranks)
    try:
        if options.plan:
            if ranks.is_main:
                print(f"run_dir={prepared.run_dir}\n{show_plan(prepared, ranks)}")
            return 0
        return execute(prepared, options, device, ranks)
    finally:
        distributed.finish()


def run_all(entries: list[tuple[Config, Options]], overrides: list[list[str]]) -> int:
    """Trains or plans the entries of a multirun; one that fails does not stop the others, a stop signal does."""
    options = entries[0][1]
    folder = Path(options.runs_root) / "sweeps" / str(options.sweep)
    device, ranks = start_device(entries[0][0].trainer.device)
    say: Callable[[str], None] = functools.partial(print, flush=True) if ranks.is_main else lambda _: None
    say(f"sweep_dir={folder}")
    prepared = [prepare(config, o, device, ranks) for config, o in entries]
    groups: dict[tuple[Path, int], list[int]] = {}
    for i, p in sorted(enumerate(prepared), key=lambda entry: entry[1].config.steps):
        groups.setdefault((p.run_dir, p.config.steps), []).append(i)  # a larger budget continues the smaller one
    trainings = [(merge([prepared[i] for i in members]), members) for members in groups.values()]
    say(f"{len(entries)} entries, {len(trainings)} trainings (entries that differ only in averaging share one)")
    manifest = {
        "command": command(),
        "entries": [
            {
                "overrides": mine,
                "run_dir": str(p.run_dir),
                "steps": p.config.steps,
                "averages": [a.id for a in p.config.averagers],
            }
            for p, mine in zip(prepared, overrides, strict=True)
        ],
    }
    if ranks.is_main and not options.plan:
        folder.mkdir(parents=True, exist_ok=True)
        write_text_atomically(folder / "manifest.json", json.dumps(manifest, indent=1))
    codes = []
    for number, (training, members) in enumerate(trainings, 1):
        if signals.stop_is_asked():
            return EXIT["stopped"]
        say(
            f"\ntraining {number} of {len(trainings)}: " + " | ".join(" ".join(overrides[i]) for i in members),
        )
        if options.plan:
            say(f"run_dir={training.run_dir}\n{show_plan(training, ranks)}")
            continue
        try:
            codes.append(execute(training, options, device, ranks))
        except UserError as error:
            codes.append(2)
            print(f"error: {error}", file=sys.stderr)
        except Failed as error:
            codes.append(EXIT["failed"])
            print(f"error: {error}", file=sys.stderr)
        except Exception:
            codes.append(EXIT["failed"])
            traceback.print_exc()
        if codes[-1] == EXIT["stopped"]:
            return EXIT["stopped"]
    if ranks.is_main and not options.plan and 0 in codes:
        try:
            say(f"\n{summarise(folder, folder)}\nsummary: {folder / 'summary.md'}, plot: {folder / 'curves.png'}")
        except (Failed, UserError, OSError) as error:  # the trainings are done all the same
            print(f"warning: no summary: {error}", file=sys.stderr)
    distributed.finish()
    return EXIT["failed"] if any(code not in (0, EXIT["diverged"]) for code in codes) else 0
