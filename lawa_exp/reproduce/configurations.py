"""`python -m lawa_exp.reproduce.configurations ewa`: the papers' set-ups, composed, against what was published of them.

`configurations.yaml` holds each set-up as words for `python -m lawa_exp`, and the published facts with their sources.
Nothing is trained and no data is needed: data sets are counted by their stated sizes
(`lawa_exp/axes/dataset/stated.yaml`).
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, cast

from lawa_exp.config.rules import near
from lawa_exp.reproduce.book import PAPERS
from lawa_exp.system.cli import Parser, exit_code
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.averaging import AveragerSettings
    from lawa_exp.runs.cost import Cost
    from lawa_exp.runs.prepare import Prepared
    from lawa_exp.seams.batches import Batches

FACTS = Path(__file__).with_suffix(".yaml")
ROUNDING = 1e-9  # relative: what floating point makes of equal numbers
ALWAYS = {  # shown of every set-up, published or not: quantity -> unit
    "parameters": "parameters",
    "steps": "steps",
    "samples": "samples",
    "snapshots": "checkpoints",
    "disk": "bytes",
    "flops": "FLOPs",
    "gpu_hours": "GPU hours",
}
NOWHERE = {"certainty": "", "source": ""}


class Machine(TypedDict):
    """peak: FLOP/s; mfu: the share of them that is assumed."""

    name: str
    peak: float
    mfu: float


class Fact(TypedDict):
    """A published fact, with what its set-up says of all its facts. See the head of configurations.yaml."""

    quantity: str
    value: float | str | None
    unit: str
    certainty: str
    source: str
    step: NotRequired[int]
    tolerance: NotRequired[float]
    because: NotRequired[str]
    not_built: NotRequired[str]


@dataclass(frozen=True)
class Row:
    """A published fact and ours.

    words: what follows `python -m lawa_exp`. step: at which the quantity is meant, where it changes. published and ours
    are in `unit`, None where there is none. tolerance: relative. verdict: `agrees`, `differs`, `not published` or
    `not built`; reason: why it differs, what is missing, or what an estimate assumes.
    """

    setup: str
    words: str
    quantity: str
    step: int | None
    published: float | str | None
    ours: float | None
    unit: str
    certainty: str
    source: str
    tolerance: float
    verdict: str
    reason: str


def check(paper: str) -> list[Row]:
    """Every fact of a paper's set-ups, in the order of the file. UserError: no such paper, or as `compose` has it."""
    content = _read()
    if paper not in PAPERS:
        raise UserError(f"{paper} is no paper here; {near(paper, PAPERS)}")
    rows = []
    for setup in content[paper]:
        words = " ".join(setup.get("words", "").split())
        planned = _planned(words) if words else None
        machine = content["machines"][setup["machine"]] if words else None
        facts = setup["facts"]
        published = {fact["quantity"] for fact in facts}
        if words:
            also = {q: unit for q, unit in ALWAYS.items() if q not in published}
            facts = facts + [{"quantity": q, "value": None, "unit": u, **NOWHERE} for q, u in also.items()]
        origin = {key: setup[key] for key in ("certainty", "source") if key in setup}
        for fact in facts:  # as the file has them
            rows.append(_row(setup["setup"], words, cast(Fact, {**origin, **fact}), planned, machine))
    return rows


def _read() -> dict[str, Any]:
    import yaml

    content: dict[str, Any] = yaml.safe_load(FACTS.read_text())
    return content


def _planned(words: str) -> tuple[Prepared, Cost]:
    """The set-up as `plan=true` has it, with the data set's stated sizes whether it is here or not."""
    import torch

    from lawa_exp.axes.dataset.stated import stated
    from lawa_exp.launch.compose import compose, read
    from lawa_exp.runs.cost import tensors_and_cost
    from lawa_exp.runs.prepare import prepare
    from lawa_exp.system.distributed import Ranks

    ((values, overrides),), _ = compose([*shlex.split(words), "plan=true"])
    config, options = read(values, overrides)
    data = stated(config.dataset, config.model.context)
    prepared = prepare(config, options, torch.device("cpu"), Ranks(), facts=data)
    return prepared, tensors_and_cost(prepared)[1]


def _row(setup: str, words: str, fact: Fact, planned: tuple[Prepared, Cost] | None, machine: Machine | None) -> Row:
    quantity, step, published = fact["quantity"], fact.get("step"), fact["value"]
    tolerance = max(ROUNDING, fact.get("tolerance", 0.0))
    ours, verdict, reason = None, "not built", fact.get("not_built", "")
    if not reason:
        assert planned and machine, f"{setup}: without words, {quantity} needs not_built"
        assert not isinstance(published, str), f"{setup}: {quantity} is built, and published as {published}"
        ours = _ours(*planned, quantity, step, machine)
        verdict, reason = "not published", ""
        if published is not None:
            same = math.isclose(ours, published, rel_tol=tolerance, abs_tol=1e-12)
            verdict, reason = ("agrees", "") if same else ("differs", fact.get("because", ""))
        if quantity == "gpu_hours":
            estimate = f"estimated at {machine['mfu']:.0%} of an {machine['name']}'s {machine['peak'] / 1e12:g} TFLOP/s"
            if published:
                estimate += f"; what was published means {machine['mfu'] * ours / published:.0%}"
            reason = f"{estimate}; {reason}" if reason else estimate
    unit, certainty, source = fact["unit"], fact["certainty"], fact["source"]
    return Row(setup, words, quantity, step, published, ours, unit, certainty, source, tolerance, verdict, reason)


def _ours(p: Prepared, cost: Cost, quantity: str, step: int | None, machine: Machine) -> float:
    if quantity == "gpu_hours":
        return cost.gpu_hours(machine["peak"], machine["mfu"])
    if quantity in QUANTITIES:
        return QUANTITIES[quantity](p, cost, step or 1)
    part, *names = quantity.split(".")
    found = getattr(p.config, part)
    if part == "averagers":
        found = _averager(p, names.pop(0))
    for name in names:
        found = getattr(found, name)
    return float(p.facts.sizes["train"] if found == "all" else found)


def _averager(p: Prepared, kind: str) -> AveragerSettings:
    settings: AveragerSettings = next(a for a in p.config.averagers if a.kind == kind)
    return settings


def _batches(p: Prepared) -> Batches:
    from lawa_exp.parallel.sharing import batches_of

    return batches_of(p.config, p.facts)


def _rate(p: Prepared, cost: Cost, step: int) -> float:
    from lawa_exp.axes.lr.rates import Rates

    return Rates(p.config.lr, p.config.scaling, p.config.fault, _batches(p)).of(step)


def _window(p: Prepared, cost: Cost, step: int) -> float:
    from lawa_exp.averaging.settings import WindowSettings

    lawa = _averager(p, "lawa")
    assert isinstance(lawa, WindowSettings)
    return lawa.k * lawa.spacing / p.config.steps


def _ema_old_weight(p: Prepared, cost: Cost, step: int) -> float:
    from lawa_exp.averaging.settings import ExponentialSettings

    ema = _averager(p, "ema")
    assert isinstance(ema, ExponentialSettings)
    return ema.old_weight(step, ema.period, step // ema.period)


QUANTITIES: dict[str, Callable[[Prepared, Cost, int], float]] = {
    "parameters": lambda p, cost, step: cost.parameters,
    "samples_per_step": lambda p, cost, step: _batches(p).size(step),
    "tokens_per_step": lambda p, cost, step: _batches(p).size(step) * p.facts.tokens_per_sample,
    "steps_per_epoch": lambda p, cost, step: p.facts.sizes["train"] / _batches(p).size(step),
    "train_tokens": lambda p, cost, step: p.facts.sizes["train"] * p.facts.tokens_per_sample,
    "steps": lambda p, cost, step: p.config.steps,
    "epochs": lambda p, cost, step: cost.samples / p.facts.sizes["train"],
    "samples": lambda p, cost, step: cost.samples,
    "tokens": lambda p, cost, step: cost.samples * p.facts.tokens_per_sample,
    "rate": _rate,
    "snapshots": lambda p, cost, step: cost.snapshots,
    "snapshot_bytes": lambda p, cost, step: cost.model_bytes,
    "disk": lambda p, cost, step: cost.on_disk * cost.model_bytes,
    "window": _window,
    "ema_old_weight": _ema_old_weight,
    "flops": lambda p, cost, step: cost.flops,
    "flops_per_sample": lambda p, cost, step: cost.flops / cost.samples,
}


def table(rows: list[Row]) -> str:
    """Markdown: a table for each set-up, and how many facts came out how."""
    lines: list[str] = []
    for setup in dict.fromkeys(row.setup for row in rows):
        mine = [row for row in rows if row.setup == setup]
        lines += [f"### {setup}", ""]
        lines += [f"`python -m lawa_exp {mine[0].words} plan=true`", ""] if mine[0].words else []
        lines += ["| quantity | published | ours | unit | verdict | certainty: source | reason |", "|" + "---|" * 7]
        for row in mine:
            name = row.quantity + (f" at step {row.step:,}" if row.step else "")
            source = f"{row.certainty}: {row.source}" if row.source else ""
            cells = [name, _number(row.published), _number(row.ours), row.unit, row.verdict, source, row.reason]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    verdicts = [row.verdict for row in rows]
    counts = [f"{verdicts.count(v)} {v}" for v in ("agrees", "differs", "not built", "not published")]
    return "\n".join([*lines, ", ".join(counts)])


def _number(value: float | str | None) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.1f}" if 100 <= abs(value) < 1e15 else f"{value:.6g}"


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns the exit code."""
    parser = Parser(
        prog="python -m lawa_exp.reproduce.configurations",
        description="Compose the papers' set-ups and hold their plans against what was published. No data is needed.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Differences that are known are results: they are shown with their reason, and the exit code is 0.",
    )
    parser.add_argument("paper", choices=[*PAPERS, "all"], help="lawa: Kaddour 2022; ewa: Sanyal et al. 2024")
    options = parser.parse_args(arguments)

    def command() -> int:
        papers = PAPERS if options.paper == "all" else (options.paper,)
        print(table([row for paper in papers for row in check(paper)]))
        return 0

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
