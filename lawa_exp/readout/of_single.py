"""One checkpoint, of which there is no average: it is evaluated, and that is its row."""

from __future__ import annotations

from pathlib import Path

from lawa_exp.evaluation.on_data import worse_than_a_guess
from lawa_exp.evaluation.read_out import evaluated
from lawa_exp.evaluation.result_files import remove_files, write_files
from lawa_exp.formats.inside import inside
from lawa_exp.formats.steps import checkpoint_in, find_checkpoints
from lawa_exp.readout.evaluators.choose import evaluator_for
from lawa_exp.readout.of_checkpoints import notes_on, refuse_inside
from lawa_exp.readout.places import claimed
from lawa_exp.readout.request import Request
from lawa_exp.results.tables import markdown
from lawa_exp.storage.metrics import KNOWN, shown_metrics, write_metrics
from lawa_exp.storage.rows import LIVE, evaluation_row, write_rows
from lawa_exp.system.errors import UserError

UNNAMED = ("model", "pytorch_model", "adapter_model")  # files that the folder around them names


def is_single(path: Path, by: str | None = None) -> bool:
    """Whether RUN is one checkpoint: a file, or a folder that is one and holds no others.

    by: the value of --data or --evaluate. With it also a folder that holds one alone, as nanoGPT's own.
    """
    if not path.is_dir():
        return path.is_file()
    others = [p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and checkpoint_in(p)]
    return not others and (checkpoint_in(path) == path or (by is not None and _sole_in(path) is not None))


def _sole_in(path: Path) -> Path | None:
    try:
        paths = list(find_checkpoints(path, "RUN").paths.values())
    except UserError:
        return checkpoint_in(path)
    return paths[0] if len(paths) == 1 else None


def read_single(request: Request) -> int:
    """Evaluates the checkpoint, prints and writes its row; the exit code."""
    run = Path(request.target.run)
    path = run if run.is_file() or checkpoint_in(run) == run else _sole_in(run)
    assert path is not None, "is_single"
    name = run.resolve().name if run.is_dir() or run.stem not in UNNAMED else run.resolve().parent.name
    refuse_inside(request, run)
    e = evaluator_for(request, name, lambda: path, path if path.is_dir() else path.parent)
    label = f"-{e.label}" if e.label else ""
    e.fitted.key = request.target.key
    step = max(inside(path).counts.values(), default=0)
    weights = e.fitted(path)
    for note in [*e.notes, *notes_on(e.fitted)]:
        print(note)
    scored = evaluated(e.score, weights, "live", step)
    if warning := worse_than_a_guess(e.score, scored.fields["loss"]):
        print(warning)
    metrics = e.task.metrics if e.task else KNOWN
    row = evaluation_row(step, "val", LIVE, scored.fields)
    names = ["loss", *(name for name in shown_metrics(metrics) if name in scored.fields)]
    table = [["weights", *names], [name, *(metrics[name].text(scored.fields[name]) for name in names)]]
    print(f"\n{markdown(table)}\n\nA single model ({e.named.unit}): there is no average of one.")
    if e.ranks is None or e.ranks.is_main:
        with claimed(request, Path("readouts"), f"{name}-alone{label}") as out:
            write_rows(out / "metrics.jsonl", [row])
            write_metrics(out, metrics)
            remove_files(out)
            write_files(out, files := scored.files("live", step))
        print(f"in {out}: {', '.join([*files, 'metrics.jsonl'])}")
    return 0
