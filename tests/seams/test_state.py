"""What a complete state takes while training goes on, and when it is on the disk."""

from pathlib import Path

import torch
from training import WORDS, training

from lawa_exp.training.keeper import Keeper
from lawa_exp.training.reader import Reader
from lawa_exp.training.recorder import Recorder
from lawa_exp.training.restore import restore
from lawa_exp.training.train import one_step


def test_a_state_is_copied_but_for_the_windows_snapshots_and_committed_before_the_next(tmp_path: Path) -> None:
    t = training(WORDS, tmp_path)
    state, saved = restore(t, None, lambda line: None)
    record, keep, read = Recorder(t, state, saved), Keeper(t, state, saved), Reader(t, 0)
    for step in range(1, 5):
        assert one_step(t, step, record, keep, read)
    staged = state.staged({"metrics_bytes": 0})
    window = {t.data_ptr() for t in staged.kept["window"].values()}
    assert window == {t.data_ptr() for s in state.window.snapshots.values() for t in s.tensors.values()}
    assert sorted(state.window.snapshots) == [2, 4]
    live = {t.data_ptr() for t in t.live.values()}
    assert all(copy.data_ptr() not in live for s in staged.copied.values() for copy in s.tensors.values())
    at_4 = {name: tensor.clone() for name, tensor in t.live.items()}

    keep.save(record)
    assert one_step(t, 5, record, keep, read)
    keep.save(record)  # that of step 4 is committed when this one is copied
    assert [p.name for p in sorted(t.run.resume.glob("step_*/manifest.json"))] and (
        t.run.resume / "step_00000004"
    ).is_dir()
    copied = staged.copied["model"].tensors
    assert all(torch.equal(copied[name], at_4[name]) for name in at_4), "what was staged has changed with the training"
    assert any(not torch.equal(t.live[name], at_4[name]) for name in at_4)
    keep.end("stopped", record)
    assert [p.parent.name for p in sorted(t.run.resume.glob("step_*/manifest.json"))] == [
        "step_00000004",
        "step_00000005",
    ]
    for part in (record, keep, read):
        part.close()
