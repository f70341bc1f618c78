"""The rules that judge a claim: comparisons of arms, such as `live - lawa > 0`, paired by seed.

Names are arms (their loss), numbers, + - * /, and functions of arms:

- `saved(average, baseline)`: how many steps later the baseline has what the average has at its step (the one function
  of the project, `statistics.steps_saved`), as a share of the budget; not reached counts as the steps that are left
- `longest(average, baseline)`: the longest of these over the average's evaluations (Kaddour's Figure 1)
- `cut(average, baseline)`: the share of the baseline's steps to that loss which the average does not need
- `earlier(average, baseline)`: how much earlier the average has the baseline's best value, as a share of the budget
- `peak(arm)`: how far the loss rises above its level before the fault that was injected (`spikes.recovery`)
- `window(average)`: k * spacing as a share of the budget; `mean(a, b, ...)`; `gpu_hours(epochs, minutes, gpus)`

`a > b` is met when the 95% interval of the mean of a - b over seeds (Student's t) is above 0, and contradicted when it
is below; `abs(a - b) < c` is met when the interval is within -c to c, contradicted when it is outside. Else it is
undecided.

A claim holds if all of its rules are met. It holds in part if some are, or if an undecided one's mean is on its side.
Else it does not hold.
"""

from __future__ import annotations

import ast
import inspect
import math
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lawa_exp.reproduce.arms import Measured, Missing
from lawa_exp.results.savings import Price, longest_saving
from lawa_exp.results.spikes import recovery
from lawa_exp.results.statistics import steps_saved, t95
from lawa_exp.system.errors import UserError

MET, AGAINST, UNDECIDED = "met", "contradicted", "undecided"
HOLDS, IN_PART, FAILS, NOT_RUN, NOT_COMPARABLE = (
    "holds",
    "holds in part",
    "does not hold",
    "not run",
    "not comparable",
)
Number = float | Mapping[int, float]  # the same for all seeds, or one for each
OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Check:
    """A rule and what came of it: the mean of left - right over n seeds and half of its 95% interval."""

    rule: str
    state: str
    mean: float
    half: float
    n: int
    on_side: bool

    def text(self) -> str:
        spread = "" if math.isnan(self.half) else f" ± {self.half:.3g}"
        return f"{self.rule}: {self.mean:+.3g}{spread} (n={self.n}), {self.state}"


def judge(checks: Sequence[Check]) -> str:
    """The verdict of a claim whose rules came out so."""
    if all(c.state == MET for c in checks):
        return HOLDS
    if any(c.state == MET or (c.state == UNDECIDED and c.on_side) for c in checks):
        return IN_PART
    return FAILS


def names_in(rule: str) -> list[str]:
    """The arms that a rule speaks of."""
    nodes = list(ast.walk(parse(rule)))
    functions = [n.func for n in nodes if isinstance(n, ast.Call)]
    found = [n.id for n in nodes if isinstance(n, ast.Name) and n not in functions]
    return list(dict.fromkeys(found))


def parse(rule: str) -> ast.expr:
    try:
        return ast.parse(rule, mode="eval").body
    except SyntaxError:
        raise UserError(f"rule {rule!r}: not an expression") from None


def check(rule: str, arms: Mapping[str, Measured]) -> Check:
    """Judges one rule. Missing: a number that it needs is not there."""
    node = parse(rule)
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        raise UserError(f"rule {rule!r}: expected one comparison, < or >")
    left, right = node.left, node.comparators[0]
    if isinstance(left, ast.Call) and isinstance(left.func, ast.Name) and left.func.id == "abs":
        if not isinstance(node.ops[0], ast.Lt):
            raise UserError(f"rule {rule!r}: abs(...) is compared by <")
        bound = value(right, arms)
        if not isinstance(bound, float) or len(left.args) != 1:
            raise UserError(f"rule {rule!r}: expected abs(...) < a number")
        mean, half, n = interval(value(left.args[0], arms))
        width = 0.0 if math.isnan(half) else half
        state = MET if abs(mean) + width < bound else AGAINST if abs(mean) - width > bound else UNDECIDED
        return Check(rule, decided(state, half), mean, half, n, abs(mean) < bound)
    difference = combined(operator.sub, value(left, arms), value(right, arms))
    sign = {ast.Gt: 1, ast.Lt: -1}.get(type(node.ops[0]))
    if sign is None:
        raise UserError(f"rule {rule!r}: expected < or >")
    mean, half, n = interval(difference)
    width = 0.0 if math.isnan(half) else half
    state = MET if sign * mean - width > 0 else AGAINST if sign * mean + width < 0 else UNDECIDED
    return Check(rule, decided(state, half), mean, half, n, sign * mean > 0)


def decided(state: str, half: float) -> str:
    """One seed decides nothing."""
    return UNDECIDED if math.isnan(half) else state


def interval(number: Number) -> tuple[float, float, int]:
    """Mean, half of its 95% interval (0 of what is the same for every seed, nan of one seed), seeds."""
    if isinstance(number, float):
        return number, 0.0, 0
    values = list(number.values())
    if not values:
        raise Missing("its arms have no seed in common")
    if len(values) == 1:
        return values[0], math.nan, 1
    half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half, len(values)


def combined(f: Callable[[float, float], float], a: Number, b: Number) -> Number:
    if isinstance(a, float) and isinstance(b, float):
        return f(a, b)
    seeds = set(a) if isinstance(b, float) else set(b) if isinstance(a, float) else set(a) & set(b)  # type: ignore[arg-type]

    def of(number: Number, seed: int) -> float:
        return number if isinstance(number, float) else number[seed]

    return {seed: f(of(a, seed), of(b, seed)) for seed in sorted(seeds)}


def value(node: ast.expr, arms: Mapping[str, Measured]) -> Number:
    """The number of an expression, by seed."""
    match node:
        case ast.Constant(value=int() | float()):
            return float(node.value)  # type: ignore[arg-type]
        case ast.Name():
            return dict(arm(node, arms).values)
        case ast.BinOp() if type(node.op) in OPERATORS:
            return combined(OPERATORS[type(node.op)], value(node.left, arms), value(node.right, arms))
        case ast.UnaryOp(op=ast.USub()):
            return combined(operator.mul, -1.0, value(node.operand, arms))
        case ast.Call(func=ast.Name(id=name)) if name in OF_ARMS:
            function = OF_ARMS[name]
            if len(node.args) != len(inspect.signature(function).parameters):
                wanted = ", ".join(inspect.signature(function).parameters)
                raise UserError(f"rule: {ast.unparse(node)}: expected {name}({wanted})")
            return function(*(arm(a, arms) for a in node.args))
        case ast.Call(func=ast.Name(id="mean")):
            numbers = [value(a, arms) for a in node.args]
            total = numbers[0]
            for number in numbers[1:]:
                total = combined(operator.add, total, number)
            return combined(operator.truediv, total, float(len(numbers)))
        case ast.Call(func=ast.Name(id="gpu_hours")):
            epochs, minutes, gpus = (a for a in (value(n, {}) for n in node.args) if isinstance(a, float))
            hours = Price.of_epochs(minutes=minutes, gpus=int(gpus)).gpu_hours_per_step
            return epochs * (hours or math.nan)
    raise UserError(f"rule: {ast.unparse(node)} is not understood; functions: {', '.join([*OF_ARMS, 'mean', 'abs'])}")


def arm(node: ast.expr, arms: Mapping[str, Measured]) -> Measured:
    name = ast.unparse(node)
    if name not in arms:
        raise UserError(f"rule: no arm {name}; arms: {', '.join(sorted(arms))}")
    return arms[name]


def by_seed(f: Callable[[int], float], *arms: Measured) -> Number:
    seeds = set.intersection(*(set(a.curves) for a in arms))
    return {seed: f(seed) for seed in sorted(seeds)}


def points(measured: Measured, seed: int) -> list[tuple[int, float]]:
    return sorted(measured.curves[seed].items())


def at(measured: Measured, seed: int) -> int:
    """The step that the arm is read at."""
    return max(s for s in measured.curves[seed] if s <= measured.arm.at * measured.steps + 1e-9)


def saved(average: Measured, baseline: Measured) -> Number:
    def of(seed: int) -> float:
        step = at(average, seed)
        return steps_saved(points(baseline, seed), step, average.curves[seed][step])[0] / baseline.steps

    return by_seed(of, average, baseline)


def longest(average: Measured, baseline: Measured) -> Number:
    return by_seed(
        lambda s: longest_saving(points(baseline, s), points(average, s)).steps / baseline.steps, average, baseline
    )


def cut(average: Measured, baseline: Measured) -> Number:
    def of(seed: int) -> float:
        step = at(average, seed)
        more = steps_saved(points(baseline, seed), step, average.curves[seed][step])[0]
        if step + more == 0:
            raise Missing(f"the baseline begins with what {average.weights} has at step {step}")
        return more / (step + more)

    return by_seed(of, average, baseline)


def earlier(average: Measured, baseline: Measured) -> Number:
    """By how much the average's curve is at the baseline's best val value before it; never: minus the budget."""

    def of(seed: int) -> float:
        step, best = min(points(baseline, seed), key=lambda p: (p[1], p[0]))
        more, reached = steps_saved(points(average, seed), step, best)
        return -more / baseline.steps if reached else -1.0

    return by_seed(of, average, baseline)


def peak(measured: Measured) -> Number:
    if "fault.at" not in measured.config:
        raise UserError(f"rule: peak({measured.label()}): its runs have no fault")

    def of(seed: int) -> float:
        found = recovery(points(measured, seed), measured.config["fault.at"])
        if found is None:
            raise Missing(f"{measured.weights} has no evaluations around the fault")
        return found.excess

    return by_seed(of, measured)


def window(average: Measured) -> Number:
    parts = dict((p[0], p[1:]) for p in average.weights.split("-")[1:])
    try:
        return int(parts["k"]) * int(parts["s"]) / average.steps
    except (KeyError, ValueError):
        raise UserError(f"rule: window({average.weights}): not a LAWA window") from None


OF_ARMS: dict[str, Callable[..., Number]] = {
    "saved": saved,
    "longest": longest,
    "cut": cut,
    "earlier": earlier,
    "peak": peak,
    "window": window,
}
