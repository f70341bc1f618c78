"""`python -m lawa_exp.published FILE --model pythia-1b-deduped`: the Pythia suite's own evaluations, as `live` rows.

FILE: a CSV (also .gz) with the columns suite, model, shot, step, task, metric, value, stderr, gathered from the
evaluations that https://github.com/EleutherAI/pythia (evals/) publishes. They are zero-shot evaluations of the
checkpoints themselves by the harness of that time, in the tables' own units: accuracies from 0 to 1, perplexities.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from lawa_exp.config.rules import near
from lawa_exp.storage.rows import Row, write_rows
from lawa_exp.system.cli import Parser, exit_code
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import check_output, lines_in, open_regular, write_text_atomically

COLUMNS = ("suite", "model", "shot", "step", "task", "metric", "value", "stderr")
SUITE = "pythia-v1"  # the models that are on the hub under these names; v0 are earlier trainings
ZERO_SHOT = ("zero-shot", "baseline", "-")  # baseline: checkpoints every 1,000 steps; -: other batch sizes
METRICS = {"ppl": "perplexity"}  # the harness's name today
PAPER_TASKS = ("lambada_openai", "arc_easy", "arc_challenge", "piqa", "winogrande", "sciq")


def pythia_rows(path: Path, model: str, tasks: Sequence[str] = PAPER_TASKS, suite: str = SUITE) -> list[Row]:
    """Zero-shot rows {"step", "split", "weights": "live", "task", "metric", "value", "stderr", "source"} by step.

    `intervention` rows, of models trained on changed data, and few-shot ones are left out. UserError: no such model,
    task or file, or a damaged one.
    """
    found: dict[tuple[int, str, str], Row] = {}
    models, known = set(), set()
    for line in _lines(path):
        if line["suite"] != suite or line["shot"] not in ZERO_SHOT:
            continue
        models.add(line["model"])
        if line["model"] != model:
            continue
        known.add(line["task"])
        if line["task"] not in tasks:
            continue
        metric = METRICS.get(line["metric"], line["metric"])
        row: Row = {"step": int(line["step"]), "split": "zeroshot", "weights": "live", "task": line["task"]}
        row |= {"metric": metric, "value": float(line["value"])}
        if line["stderr"]:
            row["stderr"] = float(line["stderr"])
        key = (int(line["step"]), line["task"], metric)
        if line["shot"] == "zero-shot" or key not in found:
            found[key] = {**row, "source": f"{suite} {line['shot']}"}
    if model not in models:
        raise UserError(f"--model={model}: {near(model, models)}")
    for task in tasks:
        if task not in known:
            raise UserError(f"--tasks {task}: not published for {model}; {near(task, known)}")
    order = {task: i for i, task in enumerate(tasks)}
    return [found[k] for k in sorted(found, key=lambda k: (k[0], order[k[1]], k[2]))]


def _lines(path: Path) -> Iterator[dict[str, str]]:
    try:
        with open_regular(path) as stored:
            file = cast(BinaryIO, gzip.GzipFile(fileobj=stored) if path.suffix == ".gz" else stored)
            reader = csv.DictReader(line.decode() for line in lines_in(file, path))
            if not set(COLUMNS) <= set(reader.fieldnames or ()):
                raise UserError(f"{path}: expected a table with the columns {', '.join(COLUMNS)}")
            for line in reader:
                if None in line.values():
                    raise UserError(f"{path}: line {reader.line_num} is cut short")
                for key in ("step", "value", *["stderr"] * bool(line["stderr"])):
                    if not _is_number(line[key], whole=key == "step"):
                        raise UserError(f"{path}: {key}={line[key]} in line {reader.line_num} is no number")
                yield line
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error})") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def _is_number(text: str, whole: bool) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text.isdecimal() or not whole


def table(rows: Sequence[Row], metric: str = "acc") -> list[list[str]]:
    """A line for each step, a column for each task that has the metric, and their mean where all of them are there."""
    tasks = list(dict.fromkeys(r["task"] for r in rows if r["metric"] == metric))
    by_step: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["metric"] == metric:
            by_step.setdefault(row["step"], {})[row["task"]] = row["value"]
    lines = [["step", *tasks, "average"]]
    for step, values in sorted(by_step.items()):
        whole = len(values) == len(tasks)
        average = f"{sum(values.values()) / len(values):.4f}" if whole else ""
        lines.append([f"{step:,}", *(f"{values[t]:.4f}" if t in values else "" for t in tasks), average])
    return lines


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)

    def command() -> int:
        from lawa_exp.results.tables import markdown

        if args.out:
            check_output("--out", Path(args.out))
        rows = pythia_rows(Path(args.file), args.model, args.tasks.split(","), args.suite)
        text = markdown(table(rows))
        print(text)
        if args.out:
            out = Path(args.out)
            out.mkdir(parents=True, exist_ok=True)
            write_rows(out / "metrics.jsonl", rows)
            head = f"# {args.model}, zero-shot accuracy of the published checkpoints ({args.suite})"
            write_text_atomically(out / "summary.md", f"{head}\n\n{text}\n")
        return 0

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.published",
        description="The Pythia suite's published zero-shot evaluations, as live rows and as a table by step.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("file", metavar="FILE", help="the table of evaluations (.csv or .csv.gz)")
    p.add_argument("--model", required=True, help="such as pythia-1b-deduped")
    p.add_argument("--tasks", default=",".join(PAPER_TASKS), help="with commas (default: %(default)s)")
    p.add_argument("--suite", default=SUITE, help="(default: %(default)s)")
    p.add_argument("--out", metavar="DIR", help="metrics.jsonl and summary.md go there")
    return p


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
