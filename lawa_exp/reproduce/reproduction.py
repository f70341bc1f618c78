"""One reproduction: what the command does, from the plan to the pages."""

from __future__ import annotations

import argparse
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lawa_exp.config.rules import near
from lawa_exp.reproduce import configurations, judged, pages, plots, recorded, trained
from lawa_exp.reproduce.arms import Run
from lawa_exp.reproduce.book import Book, Paper, load, unknown_names
from lawa_exp.reproduce.costs import cost_table, in_words, made_by
from lawa_exp.reproduce.material import Material
from lawa_exp.reproduce.once_more import train_again
from lawa_exp.storage.rundir import EXIT
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import check_output, write_text_atomically


def reproduce(args: argparse.Namespace) -> int:
    say = functools.partial(print, flush=True)
    book = load(args.claims)
    known = [p.name for p in book.papers]
    if args.paper not in (*known, "all"):
        raise UserError(f"{args.paper}: {near(args.paper, [*known, 'all'])}")
    papers = [p for p in book.papers if args.paper in (p.name, "all")]
    out = args.out or Path(args.runs_root) / "reproduce" / args.scale
    check_output("--out", out)
    for line in unknown_names(book):
        say(f"warning: {line}")
    if args.claim:
        return train_again(args, book, papers)
    if args.recompute:
        runs, facts = recorded.recorded(args.recompute)
        for paper in papers:
            judge(args, book, paper, runs, [f"judged from {args.recompute.name}", *facts], out, [])
        return 0
    names = judged.needed(book, papers, args.scale)
    words = [*args.words, *(["hydra/launcher=slurm"] if args.launcher == "slurm" else [])]
    plans = {n: trained.plan_set(book.sets[n], args.scale, args.runs_root, words) for n in names}
    gpt_tiny = trained.unit()
    if plans and (problems := [p.problem for p in plans.values()]) and all(problems):
        raise UserError(str(problems[0]))  # of the words that all have in common
    if not args.plan:
        out.mkdir(parents=True, exist_ok=True)  # a mistake in it is told before hours of work
    say(cost_table(list(plans.values()), gpt_tiny))
    for line in left_out(plans.values(), args.scale):
        say(line)
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
        if args.launcher == "slurm":
            say("queued; when they are done the same command, or one with --read, judges")
    runs = trained.read_all(plans)
    material = Material.of(book, args.scale, runs, out / "plots")
    captions = plots.write_plots(material.cache, material)
    for paper in papers:
        needed = judged.needed(book, [paper], args.scale)
        own = [plans[n] for n in needed]
        facts = [f for f in (made_by(own), *in_words(own, gpt_tiny)) if f]
        judge(args, book, paper, runs, facts, out, plots.section(captions, needed, material))
    finished = {name: runs(name) for name, plan in plans.items() if not plan.problem}
    every = list(plans.values())
    facts = [f for f in (made_by(every), *in_words(every, gpt_tiny)) if f]
    count = recorded.record(out / recorded.FILE, finished, facts)
    say(f"{out / recorded.FILE}: the curves of {count} runs, for --recompute")
    return code


def judge(
    args: argparse.Namespace,
    book: Book,
    paper: Paper,
    runs: Callable[[str], Sequence[Run]],
    facts: Sequence[str],
    out: Path,
    shown: Sequence[str],
) -> None:
    """Judges a paper's claims and writes its pages. facts: of the runs; shown: lines of Markdown with the plots."""
    found = judged.outcomes(book, paper, args.scale, runs)
    command = f"python -m lawa_exp.reproduce {paper.name} --scale {args.scale}"
    pages.write_pages(out, paper, found, command, list(facts), list(shown))
    forms = list(dict.fromkeys(o.form for claim in found.values() for o in claim))
    print(
        f"\n{paper.title}\n\n{pages.counts(found, forms)}\n\n{facts[-1]}\n{out / paper.name}.md, .tex, .csv", flush=True
    )


def left_out(plans: Iterable[trained.Planned], scale: str) -> Iterator[str]:
    """A line for each reason why sets cannot be trained here, such as data that are missing, and how to get them."""
    reasons: dict[tuple[bool, str], list[str]] = {}
    for p in plans:
        if p.problem and scale in p.set.words:
            reasons.setdefault((p.set.optional, p.problem), []).append(p.set.name)
    for (optional, problem), names in reasons.items():
        yield f"{'left out' if optional else 'warning'}: {', '.join(names)}: {problem}"


def write_configurations(paper: Paper, out: Path, say: Callable[[str], None]) -> None:
    """The paper's exact configurations, composed and compared with what was published of them."""
    rows = configurations.check(paper.name)
    counts = Counter(row.verdict for row in rows)
    table = configurations.table(rows)
    command = f"python -m lawa_exp.reproduce {paper.name} --scale paper"
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{paper.name}-configurations.md"
    write_text_atomically(path, f"# {paper.title}: its configurations\n\n    {command}\n\n{table}\n")
    say(f"\n{paper.title}\n\n{table}\n\n{', '.join(f'{n} {v}' for v, n in counts.items())}; {path}")
