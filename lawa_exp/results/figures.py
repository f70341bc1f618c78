"""How figures look, and how they are saved."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from lawa_exp.system.files import write_atomically

STYLE: Any = {  # of matplotlib
    "font.size": 8.5,
    "font.family": "DejaVu Sans",
    "axes.titlesize": 9,
    "axes.labelsize": 8.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "0.88",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "figure.dpi": 160,
}
STYLES = ("-", "--", "-.", ":")  # told apart in grey


def save_figure(figure: Any, path: Path) -> None:
    """A PNG without the traces of the machine that drew it; the old one, or all of the new."""
    if figure.get_layout_engine() is None:
        figure.tight_layout()
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix[1:], metadata={"Software": None})
    pyplot().close(figure)
    write_atomically(path, content.getvalue())


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files in our style; imported when something is drawn."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plt.rcParams.update(STYLE)
    return plt
