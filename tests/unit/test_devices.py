"""What must hold on a GPU as on a CPU: the same test bodies on both (`gpu`: needs a CUDA device)."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import UPDATE, Strike, assert_same_run, markers, rows, run, states, tiny
from torch import nn

from lawa_exp.averaging import EmaSettings, LawaSettings, SwaSettings, WmaSettings, build_averager
from lawa_exp.averaging import window as window_module
from lawa_exp.averaging.tensors import averaged_names, live_tensors
from lawa_exp.averaging.window import Window
from lawa_exp.evaluation.numerics import set_up_arithmetic
from lawa_exp.launch.compose import compose, read
from lawa_exp.runs.prepare import prepare
from lawa_exp.system.distributed import Ranks, lost

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])

DECAY = 0.9
EMA = EmaSettings(DECAY, 1, 0, False)
MEANS = [LawaSettings(3, 4, 0), WmaSettings(3, 4, 0), SwaSettings(2, 0)]


GLOO = "/src/third_party/gloo/gloo/transport/tcp/"
OTHERS_END = [
    RuntimeError(f"[{GLOO}pair.cc:561] Connection closed by peer [127.0.0.1]:4331. This is typically caused by a"),
    RuntimeError(f"[{GLOO}unbound_buffer.cc:78] Timed out waiting 6000ms for recv operation to complete"),
    RuntimeError(f"[enforce fail at {GLOO}device.cc:10] rv != -1"),
    torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0."),
    RuntimeError("NCCL communicator was aborted on rank 0."),
    RuntimeError("NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.hpp:317, unhandled system error"),
    RuntimeError("[Rank 0] NCCL watchdog thread terminated with exception: CUDA error"),
    RuntimeError("Some NCCL operations have failed or timed out. Due to the asynchronous nature of CUDA kernels"),
    torch.distributed.DistNetworkError("The client socket has timed out after 60000ms"),
]
OWN = [
    ValueError("/data/gloomy/x.jpg cannot be read"),
    ValueError(f"[{GLOO}pair.cc:561] Connection closed by peer"),
    RuntimeError("/data/gloo/x.jpg cannot be read"),
    RuntimeError("/data/NCCL/x.bin cannot be read"),
    ConnectionResetError(104, "Connection reset by peer"),
    NotImplementedError("NCCL"),
]


def test_an_error_of_this_rank_is_not_another_ranks_end() -> None:
    """The texts are those of torch where a rank is killed, or is silent for too long."""
    assert all(str(lost(error)).startswith("another rank has ended (") for error in OTHERS_END)
    assert [lost(error) for error in OWN] == [None] * len(OWN)


@on_each_device
def test_killed_and_resumed_to_the_same_bytes(device: str, tmp_path: Path) -> None:
    """In the precision that is the device's default, with dropout, under trainer.deterministic=true."""
    small = ["steps=16", "spacing=4", "averagers.swa.start=8", "evaluate.every=8", "save.every=4", "trajectory.every=4"]
    asked = tiny(*small, f"trainer.device={device}", "trainer.deterministic=true", "model.dropout=0.1")
    folder, twin = tmp_path / "run", tmp_path / "undisturbed"
    done = run(*asked, f"run_dir={twin}", warm=True)
    assert done.returncode == 0, done.stderr
    for strike, newest in ((Strike(UPDATE, n=7), 4), (Strike(UPDATE, "after", n=6), 8)):
        died = run(*asked, f"run_dir={folder}", strike=strike)
        assert died.returncode == -signal.SIGKILL and states(folder)[-1] == newest, died.stdout + died.stderr
    done = run(*asked, f"run_dir={folder}", warm=True)
    assert done.returncode == 0 and "continuing from step 8" in done.stdout, done.stderr
    assert markers(folder) == ["DONE"] and len({r["weights"] for r in rows(folder)}) == 4
    assert_same_run(folder, twin)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1 << 18))
        self.narrow = nn.Parameter(torch.randn(7, 33).bfloat16())
        self.register_buffer("steps", torch.zeros(()))


def seeded(device: str) -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net().to(device)
    return net, torch.optim.SGD(net.parameters(), lr=0.1, fused=True)


def train_a_step(net: Net, optimizer: torch.optim.Optimizer) -> None:
    """An update in place that changes every element."""
    for p in net.parameters():
        p.grad = torch.sin(p.detach() * 3) + 1
    optimizer.step()
    net.steps += 1


@on_each_device
def test_averages_are_those_of_float64_sums_in_step_order(device: str) -> None:
    """Means on the CPU: the same bytes; on a GPU: one unit in the last place. An EMA is a recursion in float32: each of
    its steps rounds less than 2 units of the largest weight, of which 1 / (1 - decay) are left."""
    net, optimizer = seeded(device)
    window = Window()
    window.fence_before(optimizer)
    averagers = {s.id: build_averager(s, averaged_names(net), window) for s in (*MEANS, EMA)}
    seen = {}
    for step in range(1, 31):
        train_a_step(net, optimizer)
        for averager in averagers.values():
            averager.update(step, live_tensors(net))
        seen[step] = net.weight.detach().cpu().double().numpy()
    for settings, taken, counts in (
        (MEANS[0], (20, 24, 28), (1, 1, 1)),
        (MEANS[1], (20, 24, 28), (1, 2, 3)),
        (MEANS[2], range(2, 31, 2), [1] * 15),
    ):
        total = np.zeros(1 << 18)
        for step, count in zip(taken, counts, strict=True):
            total += count * seen[step]
        mean = (total / sum(counts)).astype(np.float32)
        found = averagers[settings.id].average()["weight"].cpu().numpy()
        assert not np.array_equal(found, seen[30].astype(np.float32))
        assert np.all(np.abs(found - mean) <= (np.spacing(np.abs(mean)) if device == "cuda" else 0)), settings.id
    exact = seen[1]
    for step in range(2, 31):
        exact = exact + (1 - DECAY) * (seen[step] - exact)
    found = averagers[EMA.id].average()["weight"].cpu().double().numpy()
    units = np.abs(found - exact) / np.spacing(np.float32(max(np.abs(t).max() for t in seen.values())))
    assert units.max() <= 2 / (1 - DECAY)


@contextlib.contextmanager
def copies_held_back(window: Window, device: str, fenced: bool, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The copies begun inside start late: without a fence after the end, with one as long as it would take to see."""
    if device == "cuda":
        stream = window._copier._stream = window._copier._stream or torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000 if fenced else 2_000_000_000)  # clock cycles: 0.1 s, 1 s
        yield
        return
    copy, ended = window_module._copy_all, threading.Event()
    with monkeypatch.context() as patch:
        patch.setattr(window_module, "_copy_all", lambda pairs: (ended.wait(0.05 if fenced else 60), copy(pairs)))
        yield
        ended.set()


@on_each_device
@pytest.mark.parametrize("fenced", [True, False])
def test_snapshots_are_the_live_bytes_although_the_next_update_follows_at_once(
    fenced: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the fence they would not be, which shows that the copies do come late."""
    net, optimizer = seeded(device)
    window = Window()
    if fenced:
        window.fence_before(optimizer)
    else:
        monkeypatch.setattr(window, "_fenced", True)
    lawa = build_averager(LawaSettings(3, 1, 0), averaged_names(net), window)
    train_a_step(net, optimizer)
    live = {}
    for step in range(1, 5):
        live[step] = {n: t.clone() for n, t in live_tensors(net).items()}
        with copies_held_back(window, device, fenced, monkeypatch):
            lawa.update(step, live_tensors(net))
            train_a_step(net, optimizer)  # nothing waits in between but the fence
    kept = {step: snapshot.tensors for step, snapshot in window.snapshots.items()}
    assert list(kept) == [2, 3, 4]
    assert all(
        t.is_pinned() == (device == "cuda") and t.device.type == "cpu" for s in kept.values() for t in s.values()
    )
    same = [torch.equal(kept[s][n], live[s][n].cpu()) for s in kept for n in ("weight", "narrow")]
    assert all(same) if fenced else not any(same)


EXACT = """
import torch
from torch import nn


class Net(nn.Sequential):
    def forward(self, images):
        assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32
        return super().forward(images)


def net():
    return Net(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 10))
"""


def test_float32_is_float32_wherever_a_model_computes(tmp_path: Path) -> None:
    """In a training, a read-out and the curvature; torch's own default for convolutions is TF32."""
    (tmp_path / "mine.py").write_text(EXACT)
    folder = str(tmp_path / "run")
    sizes = ["steps=4", "batch.size=8", "evaluate.every=2", "evaluate.samples=8", "avg=lawa", "k=2", "spacing=1"]
    asked = ["model=custom", "model.builder=mine:net", "dataset=digits", *sizes, "trainer.dtype=float32"]
    small = ["--samples", "8", "--iterations", "2", "--batches", "2", "--batch", "2"]
    for module, arguments in {
        "lawa_exp": [*asked, f"run_dir={folder}"],
        "lawa_exp.readout": [folder, "--avg", "lawa", "--k", "3", "--spacing", "1"],
        "lawa_exp.curvature": [folder, *small],
    }.items():
        done = run(*arguments, module=module, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


@on_each_device
def test_a_convolution_in_float32_is_exact(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32, of 10 bits, is a thousandth away."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # torch's default
    ((values, given),), _ = compose(["trainer.dtype=float32"])
    set_up_arithmetic(prepare(*read(values, given), torch.device("cpu"), Ranks()).config)
    torch.manual_seed(0)
    images, weights = torch.randn(8, 32, 16, 16), torch.randn(64, 32, 3, 3)
    exact = nn.functional.conv2d(images.double(), weights.double())
    found = nn.functional.conv2d(images.to(device), weights.to(device)).cpu()
    assert (found - exact).abs().max() < 1e-5 * exact.abs().max()
