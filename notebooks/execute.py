"""Executes the notebooks here and writes them with their outputs: `python notebooks/execute.py [NOTEBOOK...]`.

A notebook reads LAWA_RUNS (where the runs are; default: the project's runs/), LAWA_CLAIMS and LAWA_STEPS. Nothing is
written of one that fails, or whose text names a folder of this machine.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
FOLDERS = ("LAWA_RUNS", "LAWA_CLAIMS", "LAWA_DATA")
TIMEOUT = 3600  # seconds for a cell
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> Any:
    """The notebook with its outputs: no times, no versions, so that executing it again changes little."""
    for name in FOLDERS:
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).resolve())
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # for %%bash
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute()
    for cell in notebook.cells:
        if "outputs" in cell:  # warnings on stderr name files of this machine
            sys.stderr.write("".join(o.text for o in cell.outputs if o.get("name") == "stderr"))
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata = nbformat.from_dict(METADATA)
    named = [place for place in places() for text in texts(notebook) if place in text]
    if named:
        raise ValueError(f"{path.name}: its output names {named[0]}, a folder of this machine")
    return notebook


def places() -> list[str]:
    """Folders that belong to this machine."""
    known = [Path.home(), HERE.parent, Path(tempfile.gettempdir()), Path(sys.prefix)]
    return [str(p) for p in known] + [os.environ[name] for name in FOLDERS if os.environ.get(name)]


def texts(notebook: Any) -> Iterator[str]:
    """What its outputs say."""
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            yield output.get("text", "")
            yield from (str(value) for kind, value in output.get("data", {}).items() if kind.startswith("text/"))


if __name__ == "__main__":
    for asked in [Path(a) for a in sys.argv[1:]] or sorted(HERE.glob("*.ipynb")):
        nbformat.write(execute(asked), asked)
        print(asked.name, flush=True)
