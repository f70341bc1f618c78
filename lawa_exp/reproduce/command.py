"""`python -m lawa_exp.reproduce PAPER`: plans, trains what is missing, reads everything, writes tables and plots."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from lawa_exp import signals
from lawa_exp.cli import Parser, exit_code
from lawa_exp.config import UserError, near
from lawa_exp.files import write_text_atomically
from lawa_exp.report import markdown
from lawa_exp.reproduce import configurations, judged, pages, plots, trained
from lawa_exp.reproduce.book import FOLDER, PAPERS, SCALES, Paper, load
from lawa_exp.reproduce.material import Material
from lawa_exp.reproduce.trained import MISSING, Planned, Training
from lawa_exp.run import EXIT
from lawa_exp.summary import made_with

LAUNCHERS = ("local", "slurm")
SHARED = "\n\nA training that several sets share counts once in the last line; hours are by the finished runs."


def main(arguments: list[str]) -> int:
    p = Parser(
        prog="python -m lawa_exp.reproduce",
        description="Reruns the published claims of a paper and judges them: trains what is missing (a training that "
        "is there already is read), and writes Markdown, LaTeX, CSV and plots. Stopped, the same command goes on.",
    )
    p.add_argument("paper", metavar="PAPER", help=f"one of {', '.join(PAPERS)}, or all")
    p.add_argument(
        "--scale",
        choices=SCALES,
        default="cpu",
        help="cpu (default): small models on embedded data; paper: the exact configurations, trained by slurm",
    )
    p.add_argument("--plan", action="store_true", help="show runs and costs, and what is done already; train nothing")
    p.add_argument("--read", action="store_true", help="train nothing: judge from the runs that are there")
    p.add_argument("--out", type=Path, help="where tables and plots go (default: RUNS_ROOT/reproduce/SCALE)")
    p.add_argument("--runs-root", default="runs", metavar="DIR", help="where the runs are (default: runs)")
    p.add_argument("--jobs", type=int, default=1, help="sets of trainings at a time on this machine (default: 1)")
    p.add_argument("--launcher", choices=LAUNCHERS, default="local", help="slurm: queue what is missing and return")
    p.add_argument("--claims", type=Path, default=FOLDER, metavar="DIR", help="claims of your own, in files like ours")
    p.add_argument("words", nargs="*", metavar="KEY=VALUE", help="Hydra overrides for every training, after --")
    args = p.parse_args(arguments)

    def command() -> int:
        signals.listen()
        return reproduce(args, shlex.join(["python", "-m", "lawa_exp.reproduce", *arguments]))

    return exit_code(command)


def reproduce(args: argparse.Namespace, command: str) -> int:
    say = functools.partial(print, flush=True)
    book = load(args.claims)
    known = [p.name for p in book.papers]
    if args.paper not in (*known, "all"):
        raise UserError(f"{args.paper}: {near(args.paper, [*known, 'all'])}")
    papers = [p for p in book.papers if args.paper in (p.name, "all")]
    out = args.out or Path(args.runs_root) / "reproduce" / args.scale
    names = judged.needed(book, papers, args.scale)
    plans = {n: trained.plan_set(book.sets[n], args.scale, args.runs_root, args.words) for n in names}
    gpt_tiny = trained.unit()
    say(costs(list(plans.values()), gpt_tiny))
    for p in plans.values():
        if p.problem and not p.set.optional and args.scale in p.set.words:
            say(f"warning: {p.set.name}: {p.problem}")
    if args.scale == "paper":
        for paper in papers:
            write_configurations(paper, out, say)
    if args.plan or (args.scale == "paper" and args.launcher == "local"):
        return 0
    code = 0
    if not args.read:
        code = trained.train(list(plans.values()), args.jobs, args.launcher, out / "logs", say)
        if code == EXIT["stopped"]:
            say("stopped: the same command goes on")
            return code
    runs = trained.read_all(plans)
    material = Material.of(book, args.scale, runs, out / "plots")
    captions = plots.write_plots(material.cache, material)
    for paper in papers:
        found = judged.outcomes(book, paper, args.scale, runs)
        needed = judged.needed(book, [paper], args.scale)
        own = [plans[n] for n in needed]
        facts = [f for f in (made_by(own), *costs_in_words(own, gpt_tiny)) if f]
        pages.write_pages(out, paper, found, command, facts, plots.section(captions, needed, material))
        forms = list(dict.fromkeys(o.form for claim in found.values() for o in claim))
        say(f"\n{paper.title}\n\n{pages.counts(found, forms)}\n\n{facts[-1]}\n{out / paper.name}.md, .tex, .csv")
    return code


def write_configurations(paper: Paper, out: Path, say: Callable[[str], None]) -> None:
    """The paper's exact configurations, composed and held against what was published of them."""
    rows = configurations.check(paper.name)
    counts = Counter(row.verdict for row in rows)
    table = configurations.table(rows)
    command = f"python -m lawa_exp.reproduce {paper.name} --scale paper"
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{paper.name}-configurations.md"
    write_text_atomically(path, f"# {paper.title}: its configurations\n\n    {command}\n\n{table}\n")
    say(f"\n{paper.title}\n\n{table}\n\n{', '.join(f'{n} {v}' for v, n in counts.items())}; {path}")


def costs(plans: Sequence[Planned], unit: float) -> str:
    """A line for each set: its trainings, steps, cost in steps of gpt_tiny, time so far or expected, what is done."""
    lines = [["set", "trainings", "done", "steps", "gpt_tiny steps", "hours of one process"]]
    pace = seconds_per_flop(plans)
    for p in [*plans]:
        if p.problem:
            lines.append([p.set.name, p.problem[:60], "", "", "", ""])
            continue
        states = [t.state() for t in p.trainings]
        flops = sum(t.flops() for t in p.trainings)
        steps = sum(t.config.steps - t.first for t in p.trainings)
        hours = f"{flops * pace / 3600:.2f}" if pace else "-"
        over = sum(s != MISSING for s in states)
        lines.append([p.set.name, str(len(states)), str(over), f"{steps:,}", f"{flops / unit:,.0f}", hours])
    every = distinct(plans)
    flops = sum(t.flops() for t in every)
    steps = sum(t.config.steps - t.first for t in every)
    hours = f"{flops * pace / 3600:.2f}" if pace else "-"
    lines.append(["together", str(len(every)), "", f"{steps:,}", f"{flops / unit:,.0f}", hours])
    return markdown(lines) + SHARED


def distinct(plans: Sequence[Planned]) -> list[Training]:
    """Each training once, the longest where several budgets share one."""
    found: dict[Path, Training] = {}
    for p in plans:
        for t in p.trainings:
            known = found.get(t.folder)
            if known is None or t.config.steps > known.config.steps:
                found[t.folder] = t
    return list(found.values())


def seconds_per_flop(plans: Sequence[Planned]) -> float | None:
    """Of the whole runs, evaluations included, over those that were trained in one go; None: there is none yet."""
    timed = [(t.flops(), times[1]) for t in distinct(plans) if (times := t.seconds())]
    return sum(s for _, s in timed) / sum(f for f, _ in timed) if timed else None


def costs_in_words(plans: Sequence[Planned], unit: float) -> list[str]:
    """What the trainings cost, and how much less than a training for each row of the tables."""
    every = distinct(plans)
    work = f"{sum(t.flops() for t in every) / unit:,.0f} steps of gpt_tiny"
    found = [f"{len(every)} trainings, as much work as {work} (by FLOPs, evaluations not counted)"]
    timed = [(1 + len(t.config.averagers), *times) for t in every if (times := t.seconds())]
    if timed:
        rows = sum(n for n, _, _ in timed)
        training, whole = sum(t for _, t, _ in timed), sum(w for _, _, w in timed)
        apart = sum(n * t + w - t for n, t, w in timed)
        found.append(
            f"one trajectory, many averages: {len(timed)} trainings give {rows:,} rows (live weights and averages) by "
            f"{training / 3600:.2f} h of training and {(whole - training) / 3600:.2f} h of evaluations and read-outs; "
            f"a training for each row would take {apart / 3600:.2f} h, {apart / whole:.1f} times as long "
            f"({rows / len(timed):.1f} times the steps)"
        )
    return found


def made_by(plans: Sequence[Planned]) -> str:
    """Machine, versions and data of the runs."""
    done = [{"run_dir": str(t.folder)} for t in distinct(plans) if t.state() != MISSING]
    return made_with(done)
