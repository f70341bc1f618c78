"""`lawa COMMAND`: the console command. `lawa train` is `python -m lawa_exp`, `lawa average` the module of that name."""

from __future__ import annotations

import importlib
import sys

from lawa_exp import __version__
from lawa_exp.system.cli import Parser, leave

COMMANDS = {  # the module with `main`, and for all but train `parser`; what it does
    "train": ("lawa_exp.launch.compose", "train, resume or plan a run: settings as key=value"),
    "average": ("lawa_exp.average", "average checkpoint files"),
    "suggest": ("lawa_exp.suggest", "which average of a finished run is worth taking"),
    "readout": ("lawa_exp.readout.__main__", "evaluate averages of saved checkpoints"),
    "reproduce": ("lawa_exp.reproduce.command", "rerun and judge the claims of a paper"),
    "status": ("lawa_exp.status.__main__", "what the runs of a folder are doing"),
    "summary": ("lawa_exp.summary", "tables of a sweep, over seeds"),
    "dashboard": ("lawa_exp.dashboard.__main__", "one HTML page of a sweep"),
    "export": ("lawa_exp.export", "write weights for Hugging Face, nanoGPT or fairseq"),
    "push": ("lawa_exp.push", "send the rows of runs to W&B, TensorBoard or CSV"),
    "data": ("lawa_exp.data.__main__", "list the corpora, and prepare them"),
    "curvature": ("lawa_exp.curvature.__main__", "Hessian of a run's weights"),
    "critical_batch": ("lawa_exp.critical_batch.__main__", "critical batch size of a sweep"),
    "published": ("lawa_exp.published", "published evaluations as rows"),
    "help": ("lawa_exp.help", "the meaning of a choice, a setting, an exit code"),
    "completion": ("lawa_exp.completion", "print the script for tab completion in bash"),
}
USAGE = "usage: lawa COMMAND ...   (lawa COMMAND --help; lawa --version)"


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        print("\n".join([USAGE, "", *(f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items())]))
        return 0
    if name == "--version":
        print(f"lawa_exp {__version__}")
        return 0
    if name not in COMMANDS:
        from lawa_exp.config.rules import near

        as_setting = f"settings follow a command: lawa train {name} ...; " if "=" in name else ""
        print(f"error: {name}: no such command; {as_setting}{near(name, COMMANDS)}", file=sys.stderr)
        return 2
    before, Parser.prefix = Parser.prefix, "lawa "
    try:
        return int(importlib.import_module(COMMANDS[name][0]).main(rest))
    finally:
        Parser.prefix = before


def run() -> None:
    """The entry point `lawa`."""
    code = main(sys.argv[1:])
    if sys.argv[1:2] == ["average"]:
        leave(code)
    sys.exit(code)


if __name__ == "__main__":
    run()
