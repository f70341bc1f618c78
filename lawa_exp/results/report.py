"""What a finished run says: report.md and curves.png, from its rows alone."""

from __future__ import annotations

from pathlib import Path

from lawa_exp.results.curves import draw_curves
from lawa_exp.results.statistics import curve
from lawa_exp.results.tables import NATS, SAVING, end_table, markdown
from lawa_exp.storage.metrics import KNOWN, Metrics, shown_metrics
from lawa_exp.storage.rows import Row, name_of, number_in
from lawa_exp.system.files import write_text_atomically


def write_report(
    folder: Path,
    rows: list[Row],
    test: list[Row],
    title: str,
    facts: list[str],
    command: str,
    unit: str = NATS,
    metrics: Metrics = KNOWN,
) -> None:
    """report.md and curves.png in `folder`. test: rows of the last step on the test split; facts: bullet points."""
    draw_curves(rows, folder / "curves.png", title, unit)
    parts = [
        f"# {title}",
        "",
        *(f"- {fact}" for fact in facts),
        "",
        f"## Validation loss ({unit})",
        "",
        end_table(rows),
        "",
        f"{SAVING}.",
        "",
        "![curves](curves.png)",
        "",
    ]
    others = shown_metrics(metrics)
    for name, metric in others.items():
        if curve(rows, "live", metric=name):
            head = f"## Validation {name}" + ("" if metric.is_share else f" ({metric.unit})")
            parts += [head, "", end_table(rows, name, metric), ""]
    if test:
        lines = [["weights", "test loss", "difference to live"]]
        lines += [[name_of(r), f"{r['loss']:.4f}", f"{r['loss'] - test[0]['loss']:+.4f}"] for r in test]
        for name in (name for name in others if name in test[0]):
            column = [name, *(others[name].text(number_in(r, name)) for r in test)]
            lines = [[*line, cell] for line, cell in zip(lines, column, strict=True)]
        parts += [
            f"## Test loss after step {test[0]['step']:,} ({test[0]['eval_samples']} samples)",
            "",
            markdown(lines),
            "",
        ]
    parts += ["## Run it again", "", f"    {command}", ""]
    write_text_atomically(folder / "report.md", "\n".join(parts))
