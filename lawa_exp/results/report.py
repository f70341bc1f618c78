"""What a finished run says: report.md and curves.png, from its rows alone."""

from __future__ import annotations

from pathlib import Path

from lawa_exp.results.figures import draw_curves
from lawa_exp.results.statistics import curve
from lawa_exp.results.tables import NATS, loss_table, markdown, readout_table
from lawa_exp.storage.rows import Row, name_of


def write_report(
    folder: Path,
    rows: list[Row],
    test: list[Row],
    title: str,
    facts: list[str],
    command: str,
    unit: str = NATS,
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
        loss_table(rows),
        "",
    ]
    parts += [
        "Steps saved: how many steps later the live weights of this same run reach what the average has at that step;",
        "`> n`: not within the n steps that were left.",
        "",
        "![curves](curves.png)",
        "",
    ]
    if curve(rows, "live", metric="accuracy"):
        parts += ["## Validation accuracy", "", readout_table(rows, "accuracy"), ""]
    if test:
        lines = [["weights", "test loss", "difference to live"]]
        lines += [[name_of(r), f"{r['loss']:.4f}", f"{r['loss'] - test[0]['loss']:+.4f}"] for r in test]
        if "accuracy" in test[0]:
            lines = [
                [*line, a] for line, a in zip(lines, ["accuracy", *(f"{r['accuracy']:.4f}" for r in test)], strict=True)
            ]
        parts += [
            f"## Test loss after step {test[0]['step']:,} ({test[0]['eval_samples']} samples)",
            "",
            markdown(lines),
            "",
        ]
    parts += ["## Run it again", "", f"    {command}", ""]
    (folder / "report.md").write_text("\n".join(parts))
