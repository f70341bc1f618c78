"""What docs/loops.md shows works as it stands; Lightning, transformers and several ranks have tests of their own."""

import re
import runpy
import warnings
from pathlib import Path

import pytest
import torch
from pages import example
from torch import nn

from lawa_exp.averaging import Ema, Lawa

PAGE = "loops.md"


def run(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """The names that the example leaves."""
    monkeypatch.chdir(folder)
    Path("train.py").write_text(code)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runpy.run_path("train.py")


def loaded(file: str) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)


def test_an_own_loop(tmp_path, monkeypatch):
    names = run(example(PAGE, "accumulate = 4"), tmp_path, monkeypatch)
    model, (lawa, ema) = nn.Linear(8, 1), names["averagers"]
    assert lawa.averager.snapshot_steps == [120, 140, 160, 180, 200] and ema.averager.step == 200
    saved = loaded("checkpoint.pt")
    for made, again in ((lawa, Lawa(model, k=5, spacing=20)), (ema, Ema(model, decay=0.99))):
        again.load_state_dict(saved[made.id])
        average = loaded(f"{made.id}.pt")
        assert all(torch.equal(average[name], t) for name, t in again.average().items())
        assert not torch.equal(average["weight"], saved["model"]["weight"])


def test_recalibration(tmp_path, monkeypatch):
    names = run(example(PAGE, "recalibrate(lawa, loader)"), tmp_path, monkeypatch)
    reference, lawa = names["model"], names["lawa"]
    reference.load_state_dict(lawa.full_average())
    torch.optim.swa_utils.update_bn(names["loader"], reference)
    assert all(torch.equal(loaded("average.pt")[name], t) for name, t in reference.state_dict().items())


def test_accelerate_goes_on_with_the_same_bytes(tmp_path, monkeypatch):
    state = pytest.importorskip("accelerate.state")
    code, averages = example(PAGE, "register_for_checkpointing"), []
    assert code.count("range(2)") == 1
    for folder, parts in (("stopped", [code, code]), ("whole", [code.replace("range(2)", "range(4)")])):
        (tmp_path / folder).mkdir()
        for part in parts:
            state.AcceleratorState._reset_state(reset_partial_state=True)
            names = run(part, tmp_path / folder, monkeypatch)
        averages.append(loaded("average.pt") | names["ema"].full_average())
        assert names["progress"].step == 12  # of 9 batches an epoch
    state.AcceleratorState._reset_state(reset_partial_state=True)
    assert all(torch.equal(averages[1][name], t) for name, t in averages[0].items())


def test_every_link_of_the_page_leads_somewhere():
    page = Path(__file__).parents[2] / "docs" / PAGE
    text = page.read_text()
    headings = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target[1:] in headings if target.startswith("#") else (page.parent / target).exists(), target
