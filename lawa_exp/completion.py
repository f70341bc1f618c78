"""`lawa completion bash`: the script for tab completion. It calls `lawa completion words -- WORD ...` at each TAB.

    eval "$(lawa completion bash)"        # in ~/.bashrc

What is completed: commands, their flags and the choices of these, after train groups, choices, settings and their
values, after help topics; everything else as file names.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterable

from lawa_exp.system.cli import Parser, exit_code

# `=` and `:` split a word in bash, so the words are those of the line, and what stands before the last one is cut off.
BASH = r"""
_lawa() {
    local line=${COMP_LINE:0:COMP_POINT} words cur before
    read -ra words <<< "$line"
    [[ $line == *[[:space:]] ]] && words+=("")
    cur=${words[${#words[@]}-1]}
    local IFS=$'\n'
    COMPREPLY=($(lawa completion words -- "${words[@]:1}" 2>/dev/null))
    before=${cur%"${cur##*[=:]}"}
    if [[ -n $before && $COMP_WORDBREAKS == *[=:]* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
    if [[ ${#COMPREPLY[@]} -gt 0 && ${COMPREPLY[0]} == *[=.] ]]; then
        compopt -o nospace
    fi
}
complete -o bashdefault -o default -F _lawa lawa
""".strip()
HYDRA = ("-m", "--help", "--cfg", "--config-dir")


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    words = arguments[2:] if arguments[:2] == ["words", "--"] else None  # argparse would read their own `--`
    if words is None:
        parser().parse_args(arguments)

    def command() -> int:
        print(BASH if words is None else "\n".join(candidates(words)))
        return 0

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.completion",
        description='Tab completion for bash: put  eval "$(lawa completion bash)"  into ~/.bashrc.',
    )
    p.add_argument("shell", choices=("bash",), help="print its script, which calls `lawa completion words -- WORD ...`")
    return p


def candidates(words: list[str]) -> list[str]:
    """What the last of the words after `lawa` may become."""
    from lawa_exp.console import COMMANDS

    *before, last = words or [""]
    if not before:
        return beginning(last, [*COMMANDS, "--help", "--version"])
    name, *given = before
    if name not in COMMANDS:
        return []
    if name == "train":
        return of_train(last)
    if name == "help" and not given:
        return of_help(last)
    own = importlib.import_module(COMMANDS[name][0]).parser()
    return of_flags(own, given, last)


def beginning(start: str, names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if name.startswith(start))


def of_flags(own: argparse.ArgumentParser, words: list[str], last: str) -> list[str]:
    """A command's flags; after one of them its choices; where it has subcommands these."""
    flags = {flag: action for action in own._actions for flag in action.option_strings}
    for action in own._actions:
        if isinstance(action, argparse._SubParsersAction):
            chosen = next((word for word in words if word in action.choices), None)
            if chosen is None:
                return beginning(last, [*action.choices, *flags])
            return of_flags(action.choices[chosen], words[words.index(chosen) + 1 :], last)
    previous = flags.get(words[-1]) if words else None
    if previous is not None and previous.nargs != 0:
        return beginning(last, map(str, previous.choices or ()))
    if last.startswith("-"):
        return beginning(last, flags)
    positional = [action for action in own._actions if not action.option_strings and action.choices]
    return beginning(last, (str(choice) for action in positional for choice in action.choices or ()))


def of_train(last: str) -> list[str]:
    """Groups and settings, with `=`; after it choices, or a setting's values."""
    from lawa_exp.launch.catalogue import names_of, settings
    from lawa_exp.launch.conf import groups

    if last.startswith("-"):
        return beginning(last, HYDRA)
    key, equals, value = last.partition("=")
    if not equals:
        named = [f"{group}=" for group in (*groups(), "hydra/launcher")]
        if "." in key:
            named = [f"{name}=" for name in settings()]
        else:  # the settings of a part only behind its dot
            named += [name if "." in name else f"{name}=" for name in {first(name) for name in settings()}]
        return beginning(last, named)
    names = list(names_of(key)) or [name for entry in settings().get(key, []) for name in entry.values]
    _, _, start = value.rpartition(",") if "," in value else value.rpartition("[")
    done = value.removesuffix(start)
    return beginning(f"{key}={value}", {f"{key}={done}{name}" for name in names})


def first(name: str) -> str:
    """`lr.` of lr.peak; a setting of no group as it is."""
    part, dot, _ = name.partition(".")
    return part + dot


def of_help(last: str) -> list[str]:
    from lawa_exp.launch.catalogue import PARTS, names_of, settings
    from lawa_exp.launch.conf import groups

    topics = {*groups(), *PARTS, "exit-codes", *(name for name in settings() if "." not in name)}
    if "." in last:
        topics = {*settings(), *(f"{group}.{name}" for group in groups() for name in names_of(group))}
    return beginning(last, topics)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
