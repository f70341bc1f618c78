"""`python -m lawa_exp.draw_schedules`: every learning-rate schedule with its defaults, drawn into one picture."""

from __future__ import annotations

import sys
from pathlib import Path

from lawa_exp.axes.lr.rates import Rates
from lawa_exp.launch.compose import compose, read
from lawa_exp.launch.conf import CONF
from lawa_exp.parallel.sharing import batches_of
from lawa_exp.results.figures import pyplot, save_figure
from lawa_exp.runs.prepare import open_dataset
from lawa_exp.runs.resolve import resolve, resolve_trainer
from lawa_exp.system.cli import Parser, exit_code
from lawa_exp.system.errors import UserError

STEPS = 1000


def main(arguments: list[str]) -> int:
    p = Parser(prog="python -m lawa_exp.draw_schedules", description=__doc__)
    p.add_argument("--out", type=Path, default=Path("schedules.png"), help="the PNG (default: schedules.png)")
    p.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for all of them, as of `python -m lawa_exp`")
    args = p.parse_args(arguments)
    return exit_code(lambda: draw(args.out, args.overrides))


def draw(out: Path, overrides: list[str]) -> int:
    if out.suffix != ".png":
        raise UserError(f"--out={out}: expected a file whose name ends in .png")
    names = sorted(
        {path.stem for path in (CONF / "lr").glob("*.yaml")} - {"on_the_fly", "custom"}
    )  # measured; of a builder
    columns = 3
    figure, axes = pyplot().subplots(-(-len(names) // columns), columns, figsize=(9, 7), dpi=120, sharex=True)
    for name, panel in zip(names, axes.flat, strict=False):
        ((values, given),), _ = compose([f"lr={name}", f"steps={STEPS}", *overrides])
        unresolved, _ = read(values, given)
        data = open_dataset(unresolved.dataset, unresolved.model.context)
        config = resolve(unresolved, data, resolve_trainer(unresolved.trainer, "cpu", local_world=1))
        batches = batches_of(config, data)
        of_step = Rates(config.lr, config.scaling, config.fault, batches).of
        rates = [of_step(s) for s in range(1, config.steps + 1)]
        panel.plot(range(1, config.steps + 1), rates, color="black", linewidth=1.4)
        panel.set_title(f"lr={name}", fontsize=9)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.tick_params(labelsize=7)
    for panel in list(axes.flat)[len(names) :]:
        panel.set_visible(False)
    figure.supxlabel("step (optimizer updates)", fontsize=9)
    figure.supylabel("learning rate", fontsize=9)
    save_figure(figure, out)
    print(f"plot: {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
