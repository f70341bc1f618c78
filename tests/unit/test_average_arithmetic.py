"""`python -m lawa_exp.average`: values that are exact, rounded once, in every type."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from averaged_files import (
    INPUTS,
    assert_same,
    average,
    expected,
    make,
    safetensors,
)
from safetensors.torch import load_file, save_file

from lawa_exp.formats.dtypes import decode
from lawa_exp.formats.sliding import LAYOUT, SlidingSum

FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]


def exact_rounding(value: Fraction, grid: np.ndarray) -> set[float]:
    """The values of an ascending grid that are nearest to an exact value."""
    at = int(np.searchsorted(grid, float(value)))
    near = [Fraction(float(g)) for g in grid[max(0, at - 2) : at + 3]]
    least = min(abs(g - value) for g in near)
    return {float(g) for g in near if abs(g - value) == least}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, *FLOAT8], ids=str)
def test_narrow_types_are_rounded_once_to_even(dtype, tmp_path):
    """Every pair of neighbours, whose mean is a tie, and means that float32 would first round to a tie."""
    bits = torch.arange(2 ** (8 * dtype.itemsize), dtype=torch.int32)
    every = bits.to(torch.uint8 if dtype.itemsize == 1 else torch.uint16).view(dtype)
    every = every[torch.isfinite(every.float())].double()
    grid = torch.unique(every)
    low, high = grid[:-1], grid[1:]
    nudge = torch.nextafter((low + high) / 2, torch.tensor(torch.inf, dtype=torch.double))
    values = torch.cat([low, high, (low + high) / 2, nudge, -nudge, (low * 0.75 + high * 0.25)])
    save_file({"w": values}, tmp_path / "in.safetensors")
    average(tmp_path / "in.safetensors", "--out", tmp_path / "out", "--dtype", str(dtype).removeprefix("torch."))
    found = load_file(tmp_path / "out" / "model.safetensors")["w"]
    assert found.dtype == dtype
    codes = found.view(torch.uint8 if dtype.itemsize == 1 else torch.uint16).int()
    numbers = grid.numpy()
    step = max(1, len(values) // 3000)
    for i in range(0, len(values), step):
        nearest = exact_rounding(Fraction(values[i].item()), numbers)
        assert found[i].item() in nearest
        if len(nearest) == 2:
            assert codes[i].item() % 2 == 0, values[i]


def test_float32_is_half_a_unit_from_the_exact_mean_and_float64_is_numpys_sum(tmp_path):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(300) * 10.0 ** rng.integers(-3, 3, 300) for _ in range(7)]
    for i, values in enumerate(inputs):
        save_file({"f": torch.tensor(values).float(), "d": torch.tensor(values)}, tmp_path / f"{i}.safetensors")
    average(*(tmp_path / f"{i}.safetensors" for i in range(7)), "--out", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    total = inputs[0]
    for values in inputs[1:]:
        total = total + values
    assert np.array_equal(found["d"].numpy(), total / 7)
    for i, value in enumerate(found["f"].numpy()):
        exact = sum(Fraction(float(np.float32(values[i]))) for values in inputs) / 7
        unit = Fraction(float(np.spacing(np.abs(value))))
        assert abs(Fraction(float(value)) - exact) <= unit * (Fraction(1, 2) + Fraction(1, 2**20))


def test_weights_and_methods(tmp_path):
    inputs = safetensors(tmp_path)

    def result(*flags: str) -> dict[str, torch.Tensor]:
        average(*inputs, "--out", tmp_path / "out", "--overwrite", *flags)
        return load_file(tmp_path / "out" / "model.safetensors")

    def wanted(*weights: float) -> dict[str, torch.Tensor]:
        full = expected(weights, INPUTS[-len(weights) :])
        return {n: full[n].contiguous() for n in sorted(full)}

    assert_same(result("--weights", "0.2,0.3,0.5"), wanted(0.2, 0.3, 0.5))
    assert_same(result("--weights=-1,1,1"), wanted(-1, 1, 1))
    assert_same(result("--method", "wma"), wanted(1, 2, 3))
    assert_same(result("--k", "2"), wanted(1, 1))
    assert_same(result("--method", "ema", "--decay", "0.75"), wanted(0.5625, 0.1875, 0.25))
    assert_same(result("--method", "swa", "--start", "2"), wanted(1, 1))


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("method", [["swa"], ["ema", "--decay", "0.75"], ["wma", "--k", "2"]], ids=lambda m: m[0])
def test_averages_that_begin_with_the_same_input_are_as_separate_ones(method, processes, tmp_path, monkeypatch):
    """Of the same snapshot on all means of `swa` begin; of every type, as each goes through memory in its own way."""
    monkeypatch.setattr("lawa_exp.formats.stream.SHARE", 1)
    monkeypatch.setattr("lawa_exp.average.processes", lambda: processes)
    types = [torch.float64, torch.float32, torch.float16, torch.bfloat16, *FLOAT8]

    def values(i: int) -> dict[str, torch.Tensor]:
        x = torch.randn(1000, dtype=torch.double, generator=torch.Generator().manual_seed(i))
        return {str(dtype): x.to(dtype) for dtype in types}

    inputs = tmp_path / "inputs"
    inputs.mkdir()
    make(inputs, values, steps=range(1, 5))
    all_at_once = ["--trajectory", inputs, "--method", *method]
    average(*all_at_once, "--out", tmp_path / "out")
    ends = range(2 if method[0] == "wma" else 1, 5)
    assert len(list((tmp_path / "out").iterdir())) == len(ends)
    for end in ends:
        average(*all_at_once, "--at", end, "--out", tmp_path / f"one_{end}")
        made = tmp_path / "out" / f"step_{end:08d}" / f"in_{end}.pt"
        assert made.read_bytes() == (tmp_path / f"one_{end}" / f"in_{end}.pt").read_bytes(), end
        if method == ["swa"]:
            found = torch.load(made, weights_only=True)
            for dtype in (torch.float64, torch.float32, torch.float16):
                total = sum(values(i)[str(dtype)].double().numpy() for i in range(1, end + 1))
                assert np.array_equal(found[str(dtype)].numpy(), (total / end).astype(str(dtype)[6:])), (dtype, end)


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp32"])
def test_short_names_of_dtypes_and_sizes_that_can_be_read(name, tmp_path, capsys):
    """All that is floating-point is cast, as `Module.to` does."""
    model = torch.nn.BatchNorm1d(3, dtype=torch.float64)
    torch.save(model.state_dict(), tmp_path / "a.pt")
    average(tmp_path / "a.pt", "--dtype", name, "--out", tmp_path / "out")
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]
    assert {n: t.dtype for n, t in torch.load(tmp_path / "out" / "a.pt").items()} == {
        n: t.dtype for n, t in model.to(wanted).state_dict().items()
    }
    assert re.search(r"of 1 checkpoint \([1-9]\d* B in ", capsys.readouterr().out)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_sliding_sum_is_the_sum_made_afresh(dtype: str) -> None:
    """To the bit, with values far apart, zeros of both signs and subnormals, where going on is not exact; and where it
    is, it does go on."""
    draw = np.random.default_rng(0)
    bits, mantissa = LAYOUT[dtype]
    width = 8 * bits(0).itemsize
    n, k, went_on = 64, 5, 0
    for trial in range(300):
        inputs = []
        for _ in range(12):
            if trial % 3 == 0:  # any bit pattern that is a finite number
                x = draw.integers(0, 2**width, n).astype(bits)
                x[(x >> mantissa) & bits(2 ** (width - 1 - mantissa) - 1) == 2 ** (width - 1 - mantissa) - 1] = 0
            else:
                values = draw.normal(size=n) * (0.02 if trial % 3 == 1 else 10.0 ** draw.integers(-4, 4, n))
                values[draw.random(n) < 0.1 * (trial % 2)] = 0.0
                x = torch.from_numpy(values).to(getattr(torch, dtype)).view(torch.uint8).numpy().view(bits)
                if trial % 7 == 0:
                    x = np.where(draw.random(n) < 0.2, bits(1 << (width - 1)), x)  # -0
            inputs.append(x.view(np.uint8))
        window = SlidingSum(np.empty((k, n)), np.empty(n), dtype, np.empty(8 * n, np.uint8))
        decoded = [decode(x, dtype, np.empty(n)).copy() for x in inputs]
        for i, x in enumerate(inputs):
            window.push(x)
            went_on += i >= k and window._exact()
            if i >= k - 1:
                fresh = decoded[i - k + 1].copy()
                for value in decoded[i - k + 2 : i + 1]:
                    fresh += value
                assert window.total.tobytes() == fresh.tobytes(), (trial, i)
    assert 300 < went_on < 300 * 7
