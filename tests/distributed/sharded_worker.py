"""What test_sharded.py starts on every rank: `sharded_worker.py FOLDER CHECK...` prints `ok CHECK` on rank 0.

The shapes do not go evenly round two or three ranks, one rank's shard of `scale` is empty, and weights are tied.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_model, save_file
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

from lawa_exp.averaging import Bema, Ema, Lawa, PowerEma, Swa, Window, Wma, recalibrate
from lawa_exp.averaging.model import ModelAverager
from lawa_exp.averaging.tensors import live_tensors

TOKENS = torch.arange(11)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 7)
        self.norm = nn.LayerNorm(7)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return x + torch.tanh(self.linear(self.norm(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 7)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.ones(1, 7))
        self.head = nn.Linear(7, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x * self.scale)


def plain(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


def sharded(reshard: bool = True, bf16: bool = False, compiled: bool = False, checkpointed: bool = False) -> Net:
    model = plain()
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    for i, block in enumerate(model.blocks):
        if compiled:
            model.blocks[i] = block = torch.compile(block, backend="eager")
        if checkpointed:
            model.blocks[i] = block = checkpoint_wrapper(block)
        fully_shard(block, reshard_after_forward=reshard, mp_policy=policy)
    return fully_shard(model, reshard_after_forward=reshard, mp_policy=policy)


def averagers(model: nn.Module) -> list[ModelAverager]:
    window = Window()
    return [
        Lawa(model, k=3, spacing=2, window=window),
        Wma(model, k=2, spacing=3, window=window),
        Ema(model, decay=0.8),
        PowerEma(model, every=2),
        Swa(model, start=4),
        Bema(model, every=1),
    ]


def set_weights(model: nn.Module, step: int) -> None:
    """Weights that depend on the step alone, whole or sharded."""
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in model.parameters():
            whole = torch.randn(p.shape, generator=generator) / 3
            if isinstance(p, DTensor):
                whole = distribute_tensor(whole, p.device_mesh, p.placements, src_data_rank=None)
            p.copy_(whole)
        for buffer in model.buffers():
            buffer.fill_(step)


def observe(model: nn.Module, first: int, last: int, observers: list[ModelAverager]) -> None:
    for step in range(first, last + 1):
        set_weights(model, step)
        for averager in observers:
            averager.update(step)


@cache
def unsharded(last: int) -> list[dict[str, Tensor] | None]:
    model = plain()
    observers = averagers(model)
    observe(model, 1, last, observers)
    return [a.average() for a in observers]


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    targets = (TOKENS * 3 + dist.get_rank()) % 11
    nn.functional.cross_entropy(model(TOKENS).float(), targets).backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    model.eval()
    return model(TOKENS)


def assert_same(a: dict[str, Tensor] | None, b: dict[str, Tensor] | None) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        assert a.keys() == b.keys(), a.keys() ^ b.keys()
        assert all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


def assert_whole(averager: ModelAverager, expected: dict[str, Tensor] | None) -> None:
    """Its whole average, on rank 0, is `expected`; this rank's is its part of that."""
    whole = averager.full_average(tied_once=True) if averager.defined else None
    if dist.get_rank() == 0:
        assert_same(whole, expected)
    else:
        assert whole is None
    part = averager.average()
    if part is not None and expected is not None:
        for name, tensor in live_tensors(averager.model).items():
            rows = part[name].shape
            assert rows == tensor.shape
            if part[name].dim():
                size = -(-len(expected[name]) // dist.get_world_size()) if rows != expected[name].shape else 0
                begin = size * dist.get_rank()
                assert torch.equal(part[name], expected[name][begin : begin + len(part[name])])


def check_averages_are_the_unsharded_ones(folder: Path) -> None:
    model = sharded(bf16=True)
    observers = averagers(model)
    if dist.get_world_size() > 1:
        parts = [t for n, t in live_tensors(model).items() if n == "scale"]
        assert parts[0].numel() == (7 if dist.get_rank() == 0 else 0)
    for last in range(1, 10):
        observe(model, last, last, observers)
        logits(model)  # gathers, in bfloat16
        for averager, expected in zip(observers, unsharded(last), strict=True):
            assert_whole(averager, expected)


def check_ddp(folder: Path) -> None:
    model = nn.parallel.DistributedDataParallel(plain())
    observers = averagers(model)
    observe(model, 1, 9, observers)
    for averager, expected in zip(observers, unsharded(9), strict=True):
        assert_same(averager.average(), expected)
        whole = averager.full_average(tied_once=True)
        assert_same(whole, expected if dist.get_rank() == 0 else None)
    before = logits(model)
    with observers[0].applied():
        inside = logits(model)
    by_hand = plain()
    by_hand.load_state_dict(observers[0].average(), strict=False)
    assert torch.equal(inside, logits(by_hand)) and not torch.equal(inside, before)
    assert torch.equal(logits(model), before)


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def check_recalibrate(folder: Path) -> None:
    """Every rank has the mean over all ranks' batches; with DDP one may have more of them, or none."""
    rank, world = dist.get_rank(), dist.get_world_size()
    batches = [torch.randn(size, 7, generator=torch.Generator().manual_seed(size)) for size in range(4, 4 + 2 * world)]
    uneven = [batches, *[[]] * (world - 1)]
    for model, own in (
        (nn.parallel.DistributedDataParallel(normed()), batches[rank::world]),
        (nn.parallel.DistributedDataParallel(normed()), uneven[rank]),
        (fully_shard(normed()), batches[rank::world]),
    ):
        lawa = Lawa(model, k=2, spacing=1)
        for step in (1, 2):
            set_weights(model, step)
            lawa.update(step)
        whole = lawa.full_average()
        with lawa.applied():
            recalibrate(lawa, own)
            inside = lawa.full_average()
            found = [t.clone() for n, t in live_tensors(model).items() if "running" in n]
            parts: list[object] = [None] * world
            dist.all_gather_object(parts, found)
            assert all(torch.equal(a, b) for part in parts for a, b in zip(part, found, strict=True))
        if rank == 0:
            reference = normed()
            reference.load_state_dict(whole)
            torch.optim.swa_utils.update_bn(batches, reference)
            for name in ("1.running_mean", "1.running_var"):
                torch.testing.assert_close(inside[name], reference.state_dict()[name], rtol=1e-5, atol=1e-6)
        with lawa.applied():
            try:
                recalibrate(lawa, [])
            except ValueError as error:
                assert "no batches, on any rank" in str(error)
            else:
                raise AssertionError("accepted")


def check_no_communication(folder: Path) -> None:
    model = sharded()
    observers = averagers(model)
    with CommDebugMode() as forward:
        logits(model)
    assert forward.get_total_counts() > 0
    with CommDebugMode() as averaging:
        observe(model, 1, 8, observers)
        for averager in observers:
            averager.average()
            averager.load_state_dict(averager.state_dict())
    assert averaging.get_total_counts() == 0, averaging.get_comm_counts()
    if dist.get_rank() == 0:  # the others would be waited for
        observe(model, 9, 12, observers)
        for averager in observers:
            averager.average()
            averager.state_dict()
    dist.barrier()


def check_evaluation(folder: Path) -> None:
    """The model computes with the average, whatever was gathered before, and trains on as if nothing had been."""
    for reshard in (True, False):
        model, twin = sharded(reshard), sharded(reshard)
        optimizers = [torch.optim.AdamW(m.parameters(), lr=0.05) for m in (model, twin)]
        lawa = Lawa(model, k=3, spacing=2)
        for step in range(1, 11):
            train(model, optimizers[0])
            train(twin, optimizers[1])
            lawa.update(step)
            if not lawa.defined:
                continue
            before = {n: t.clone() for n, t in live_tensors(model).items()}
            live = logits(model)  # with reshard_after_forward=False what was gathered for it is still there after it
            with lawa.applied():
                inside = logits(model)
            assert torch.equal(logits(model), live)
            assert_same(before, live_tensors(model))
            whole = [lawa.full_average(tied_once=True)]
            dist.broadcast_object_list(whole, src=0)
            by_hand = plain(1)
            by_hand.load_state_dict(whole[0], strict=False)
            assert torch.equal(inside, logits(by_hand))
            assert (inside - live).abs().max() > 0.01
        assert_same(live_tensors(model), live_tensors(twin))


def check_export(folder: Path) -> None:
    model = sharded()
    observers = averagers(model)
    observe(model, 1, 9, observers)
    for averager in observers:
        with averager.applied():
            expected = logits(model)
        whole = averager.full_average(tied_once=True)
        if whole is None:
            continue
        assert "head.weight" not in whole and not any(isinstance(t, DTensor) for t in whole.values())
        save_file(whole, folder / "model.safetensors")
        other = plain(1)
        load_model(other, folder / "model.safetensors")
        assert torch.equal(logits(other), expected)


def check_wrapped(folder: Path) -> None:
    """Compiled as a whole and block by block, and with activation checkpoints: names are the model's own, evaluation
    follows the swap."""
    expected = unsharded(7)
    whole = torch.compile(sharded(), backend="eager")
    for model in (whole, sharded(compiled=True), sharded(checkpointed=True), sharded(compiled=True, checkpointed=True)):
        assert any("_orig_mod." in n or "_checkpoint_wrapped_module." in n for n, _ in model.named_parameters())
        observers = averagers(model)
        logits(model)  # compiles
        observe(model, 1, 7, observers)
        live = logits(model)
        for averager, average in zip(observers, expected, strict=True):
            assert_whole(averager, average)
            by_hand = plain()
            by_hand.load_state_dict(average, strict=False)
            with averager.applied():
                inside = logits(model)
            torch.testing.assert_close(inside, logits(by_hand))
            assert not torch.allclose(inside, live) and torch.equal(logits(model), live)


def check_refuse_flattened_parameters(folder: Path) -> None:
    try:
        Lawa(FullyShardedDataParallel(plain(), device_id=torch.device("cpu")))
    except TypeError as error:
        assert "use torch.distributed.fsdp.fully_shard" in str(error)
    else:
        raise AssertionError("accepted")


def check_save(folder: Path) -> None:
    """After three steps, when no window is full, and after seven: in a file of each rank and in one folder of all."""
    for last in (3, 7):
        model = sharded()
        observers = averagers(model)
        observe(model, 1, last, observers)
        saved = folder / f"{dist.get_world_size()}ranks-{last}"
        dcp.save({a.id: a for a in observers}, checkpoint_id=saved)
        torch.save([a.state_dict() for a in observers], saved / f"rank{dist.get_rank()}.pt")


def check_resume_on_the_same_ranks(folder: Path) -> None:
    for last in (3, 7):
        model = sharded()
        observers = averagers(model)
        file = folder / f"{dist.get_world_size()}ranks-{last}" / f"rank{dist.get_rank()}.pt"
        for averager, state in zip(observers, torch.load(file, weights_only=True), strict=True):
            averager.load_state_dict(state)
        go_on(model, last, observers)


def check_resume_on_any_ranks(folder: Path) -> None:
    """What there is in `folder`, saved on two ranks or three."""
    for saved in sorted(folder.glob("*ranks-*")):
        model = sharded() if dist.is_initialized() else plain()
        observers = averagers(model)
        dcp.load({a.id: a for a in observers}, checkpoint_id=saved)
        go_on(model, int(saved.name.partition("-")[2]), observers)


def go_on(model: nn.Module, last: int, observers: list[ModelAverager]) -> None:
    for step in range(last, last + 4):
        for averager, expected in zip(observers, unsharded(step), strict=True):
            main = not dist.is_initialized() or dist.get_rank() == 0
            whole = averager.full_average(tied_once=True) if averager.defined else None
            assert_same(whole, expected if main else None)
        observe(model, step + 1, step + 1, observers)


def check_refuse_a_file_of_other_ranks(folder: Path) -> None:
    for averager, state in zip(averagers(sharded()), torch.load(folder / "2ranks-7" / "rank1.pt"), strict=True):
        try:
            averager.load_state_dict(state)
        except ValueError as error:
            assert "for another number of ranks use torch.distributed.checkpoint" in str(error)
        else:
            raise AssertionError("taken over")


def main() -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    for name in sys.argv[2:]:
        globals()[f"check_{name}"](Path(sys.argv[1]))
        dist.barrier()
        if dist.get_rank() == 0:
            print("ok", name, flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
