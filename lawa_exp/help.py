"""`lawa help TOPIC`: what a choice, a setting or an exit code means, from the rules that check them."""

from __future__ import annotations

import sys
import textwrap
from typing import TYPE_CHECKING

from lawa_exp.system.cli import Parser, exit_code
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.launch.catalogue import Described

EXIT_CODES = """
  0   done; also: it was done already
  1   failed; under -m: a run failed
  2   a mistake of the user's, said in one line
  3   training diverged: a loss or gradient was not finite; the run is finished
  75  stopped and saved; the same command resumes
torchrun turns every code but 0 into 1; the files DONE, FAILED, DIVERGED and STOPPED in the run's folder tell. Under -m
1 comes before 75, and 75 before 3.
""".strip("\n")
MANY = 8  # choices that are listed by name where their defaults differ


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)

    def command() -> int:
        print(text_of(args.topic) if args.topic else overview())
        return 0

    return exit_code(command)


def parser() -> Parser:
    p = Parser(prog="python -m lawa_exp.help", description="The meaning of a choice, a setting or an exit code.")
    p.add_argument(
        "topic",
        nargs="?",
        metavar="TOPIC",
        help="a group (lr), a choice (lr.wsd), a setting (averagers.ema.decay, lr.peak, k), exit-codes",
    )
    return p


def overview() -> str:
    """Every group with its choices, and the other topics."""
    from lawa_exp.launch.catalogue import PARTS, TOP
    from lawa_exp.launch.conf import groups

    width = max(map(len, groups()))
    lines = ["groups (group=choice); lawa help GROUP, lawa help GROUP.CHOICE:"]
    lines += [wrapped(f"  {group:{width}}  {', '.join(names)}", 4 + width) for group, names in groups().items()]
    lines += ["", f"settings of no group; lawa help NAME: {', '.join((*TOP, *PARTS))}"]
    lines += ["", "also: lawa help exit-codes, lawa COMMAND --help"]
    return "\n".join(lines)


def text_of(topic: str) -> str:
    """The page of a topic. UserError: there is none."""
    from lawa_exp.config.rules import near
    from lawa_exp.launch.catalogue import EXPERIMENT, PARTS, names_of, settings, shared
    from lawa_exp.launch.conf import groups

    if topic in ("exit-codes", "exit_codes"):
        return EXIT_CODES
    topic = topic.removesuffix("=").replace("=", ".")  # `lr=wsd` as well
    if topic in settings():
        return of_setting(topic, settings()[topic])
    if topic in ("hydra.launcher", "hydra/launcher"):
        return of_group("hydra/launcher")
    if topic in groups():
        return of_group(topic)
    if topic in PARTS:
        return "\n".join(line for entry in shared(topic) for line in lines_of(entry))
    group, _, choice = topic.replace("hydra.launcher.", "hydra/launcher.").partition(".")
    group = "avg" if group == "averagers" else group
    if choice in names_of(group):
        return of_choice(group, choice)
    pages = {*settings(), *groups(), *PARTS, "exit-codes"} | {f"{g}.{c}" for g in groups() for c in names_of(g)}
    if choice and group in groups() and group != EXPERIMENT:
        pages = {p for p in pages if p.startswith(f"{group}.")}
    raise UserError(f"{topic}: no such group, choice or setting; {hint(near(topic, pages))}")


def hint(near: str) -> str:
    """Of `did you mean ...? choices: ...` the first part, where there is one."""
    meant, question, _ = near.partition("? ")
    return meant + "?" if question else "lawa help lists them"


def of_group(group: str) -> str:
    from lawa_exp.launch.catalogue import head, names_of

    names = names_of(group)
    width = max(map(len, names))
    lines = [f"{group}=CHOICE; lawa help {group}.CHOICE lists its settings", ""]
    return "\n".join(lines + [wrapped(f"  {name:{width}}  {head(group, name)}", 4 + width) for name in names])


def of_choice(group: str, choice: str) -> str:
    from lawa_exp.launch.catalogue import described, head

    lines = [wrapped(f"{group}={choice}: {head(group, choice)}", 2)]
    for entry in described(group, choice):
        lines += ["", *lines_of(entry)]
    return "\n".join(lines)


def of_setting(key: str, entries: list[Described]) -> str:
    """Once for each meaning; defaults by choice."""
    from lawa_exp.launch.catalogue import prefix_group

    blocks: dict[tuple[str, str], list[Described]] = {}
    for entry in entries:
        blocks.setdefault((entry.meaning, entry.expected), []).append(entry)
    lines = []
    for (meaning, expected), block in blocks.items():
        by_default: dict[str, list[str]] = {}
        for entry in block:
            by_default.setdefault(written(entry.default), []).append(entry.choice)
        group = prefix_group(key)
        lines += [wrapped(f"{key}: {meaning}", 2), wrapped(f"  expected: {expected}", 4)]
        if len(by_default) == 1:
            default = next(iter(by_default))
            named = f" (with {group}={', '.join(c for c in by_default[default])})" if block[0].choice else ""
            lines.append(wrapped(f"  default: {default}{named}", 4))
        else:
            each = (f"{default} with {', '.join(names)}" for default, names in by_default.items())
            lines.append(wrapped(f"  default, by {group}=: {'; '.join(each)}", 4))
    return "\n".join(lines)


def lines_of(entry: Described) -> list[str]:
    return [
        wrapped(f"{entry.key}: {entry.meaning}", 2),
        wrapped(f"  expected: {entry.expected}", 4),
        f"  default: {written(entry.default)}",
    ]


def written(value: object) -> str:
    """A default as it is written on the command line."""
    from lawa_exp.launch.catalogue import NOTHING

    if value is NOTHING:
        return "none, it has to be given"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k}: {written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        return f"that of {value[2:-1]}"
    return f"{value:g}" if isinstance(value, float) else str(value)


def wrapped(text: str, indent: int) -> str:
    return "\n".join(textwrap.wrap(text, 118, subsequent_indent=" " * indent, break_on_hyphens=False)) or text


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
