"""`suggest FOLDER --data DATA`: what is reported is what PyTorch computes, and the command that is printed does it."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import TEXT, answer, around, in_process, readout, refusal, single, suggestion, written_by
from helpers import rows
from torch import Tensor, nn
from torch.nn import functional as F

from lawa_exp.average import _average, parser
from lawa_exp.averaging import EmaSettings, LawaSettings, SwaSettings, WmaSettings, observed_steps
from lawa_exp.averaging.arithmetic import weighted_mean
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.convert.recognise.recognised import TEXTS
from lawa_exp.convert.validation.content import Documents, Place, TokenArray
from lawa_exp.convert.validation.rows import content as content_of_rows
from lawa_exp.convert.validation.rows import of_columns
from lawa_exp.evaluation.evaluate import fixed_set
from lawa_exp.evaluation.mixtures import Mixtures
from lawa_exp.evaluation.replay import Snapshots
from lawa_exp.readout.of_folder import numbered
from lawa_exp.readout.places import claimed
from lawa_exp.readout.request import Averages, Evaluation, Request, Target
from lawa_exp.system.errors import UserError

CONTEXT = 16


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def characters(folder: Path) -> tuple[np.ndarray, int]:
    """A folder of tokens as nanoGPT's prepare.py writes it, and its text; the tokens of val, and the vocabulary."""
    folder.mkdir(parents=True)
    numbers = {c: i for i, c in enumerate(sorted(set(TEXT)))}
    ids = np.array([numbers[c] for c in TEXT], np.uint16)
    for split in ("train", "val"):
        ids.tofile(folder / f"{split}.bin")
    (folder / "val.txt").write_text(TEXT)
    meta = {"vocab_size": len(numbers), "stoi": numbers, "itos": {i: c for c, i in numbers.items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return ids.astype(np.int64), len(numbers)


def trained(model: nn.Module, tokens: np.ndarray, steps: int = 60) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        starts = (np.arange(16) * 97 + step * 31) % (len(tokens) - CONTEXT - 1)
        rows = torch.from_numpy(np.stack([tokens[s : s + CONTEXT + 1] for s in starts]))
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def nanogpt(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Checkpoints with nanoGPT's keys, of a compiled model, and the folder of its tokens."""
    root = tmp_path_factory.mktemp("nanogpt")
    tokens, size = characters(root / "data")
    torch.manual_seed(0)
    model = GPTSettings("x", 1, 2, 16, CONTEXT, size, False, 0.0, False).build()
    trained(model, tokens)
    shape = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": CONTEXT, "bias": False, "dropout": 0.1}
    (root / "out").mkdir()
    for i, state in enumerate(around(model, 8, 0.1), 1):
        torch.save(
            {
                "model": {f"_orig_mod.{n}": t for n, t in state.items()},
                "optimizer": {"state": {}, "param_groups": []},
                "model_args": {**shape, "vocab_size": size},
                "iter_num": 25 * i,
                "best_val_loss": torch.tensor(2.0),
                "config": {"dataset": "chars"},
            },
            root / "out" / f"ckpt{25 * i}.pt",
        )
    return root / "out", root / "data"


def nanogpt_loss(path: Path, data: Path) -> float:
    """Of a checkpoint, with PyTorch alone: all blocks of val."""
    saved = torch.load(path, weights_only=True)
    a = saved["model_args"]
    sizes = (a["n_layer"], a["n_head"], a["n_embd"], a["block_size"], a["vocab_size"])
    model = GPTSettings("x", *sizes, a["bias"], 0.0, False).build().eval()
    model.load_state_dict({n.removeprefix("_orig_mod."): t for n, t in saved["model"].items()})
    tokens = torch.from_numpy(np.fromfile(data / "val.bin", np.uint16).astype(np.int64))
    starts = CONTEXT * torch.from_numpy(fixed_set((len(tokens) - 1) // CONTEXT, 256))
    blocks = torch.stack([tokens[s : s + CONTEXT + 1] for s in starts])
    with torch.no_grad():
        return float(F.cross_entropy(model(blocks[:, :-1]).flatten(0, 1), blocks[:, 1:].flatten()))


def test_nanogpt_on_its_tokens(nanogpt: tuple[Path, Path], here: Path) -> None:
    """The loss is PyTorch's, and the command that is printed writes the file that has it."""
    folder, data = nanogpt
    code, out, err = suggestion(folder, "--data", data)
    assert code == 0, err
    take, gain, command = out.splitlines()[-3:]
    made = json.loads((here / "readouts/out-suggest-data-data/suggestion.json").read_text())
    assert made["lines"] == [take, gain, command] and made["command"] == command and made["id"] != "live"
    assert take.startswith(f"Take {made['id']}, ") and "95% interval of the 206 evaluation samples" in gain
    assert made["gain"] > made["half"] > 0
    assert made["values"]["live"] == pytest.approx(nanogpt_loss(folder / "ckpt200.pt", data), rel=1e-6)
    file = written_by(command, here) / "ckpt200.pt"
    assert nanogpt_loss(file, data) == pytest.approx(made["values"][made["id"]], rel=1e-6)
    # The gain by cross-fitting need not be the difference of the losses; the line says what each is of.
    assert f"{made['gain']:+.4f} ± {made['half']:.4f} nats per token, on samples that had no vote in the choice" in gain
    both = f"loss {made['values']['live']:.4f} -> {nanogpt_loss(file, data):.4f}."
    assert gain.endswith(f"on all of them, as in the table, {both}")
    table = [line.split() for line in (here / "readouts/out-suggest-data-data/summary.md").read_text().splitlines()]
    of_table = {line[1]: line[3] for line in table if len(line) > 3}
    assert [of_table[id] for id in ("live", made["id"])] == [f"{made['values'][id]:.4f}" for id in ("live", made["id"])]
    # The same from text, through the characters of meta.pkl, and of the average alone.
    assert answer(folder, "--data", data / "val.txt")["values"] == made["values"]
    assert single(file, "--data", data)["loss"] == pytest.approx(made["values"][made["id"]], rel=1e-6)


def test_every_kind_of_average_has_its_command(nanogpt: tuple[Path, Path], here: Path) -> None:
    from lawa_exp.readout.of_folder import command_of
    from lawa_exp.readout.request import Averages, Evaluation, Request, Target

    folder, data = nanogpt
    values = answer(folder, "--data", data)["values"]
    own = numbered({25 * i: folder / f"ckpt{25 * i}.pt" for i in range(1, 9)}, "step")
    request = Request(Target(str(folder)), Averages((), {}), Evaluation(data=str(data)))
    kinds = [LawaSettings(3, 25), WmaSettings(3, 25), EmaSettings("lawa:3", 25), SwaSettings(25, 150)]
    assert {s.id for s in kinds} <= values.keys()
    for settings in kinds:
        file = written_by(command_of(request, own, settings), here) / "ckpt200.pt"
        assert nanogpt_loss(file, data) == pytest.approx(values[settings.id], rel=1e-6), settings.id


def test_uneven_steps_are_counted(nanogpt: tuple[Path, Path], here: Path) -> None:
    """As a Trainer's, which keeps the last few checkpoints and one after its last step."""
    folder, data = nanogpt
    for step, of in ((100, 125), (150, 150), (200, 175), (213, 200)):
        saved = torch.load(folder / f"ckpt{of}.pt", weights_only=True)
        (here / "odd").mkdir(exist_ok=True)
        torch.save({**saved, "iter_num": step}, here / "odd" / f"ckpt_{step}.pt")
    code, out, err = suggestion("odd", "--data", data)
    assert code == 0, err
    assert "The steps are not evenly spaced: the 4 checkpoints count as 1 to 4." in out
    made = json.loads((here / "readouts/odd-suggest-data-data/suggestion.json").read_text())
    file = written_by(made["command"], here) / "ckpt_213.pt"
    assert nanogpt_loss(file, data) == pytest.approx(made["values"][made["id"]], rel=1e-6)


def test_half_written_checkpoints_are_left_out(nanogpt: tuple[Path, Path], here: Path) -> None:
    """By name, wherever they are; the values are those without them, and the command does not read them."""
    folder, data = nanogpt
    for name in ("whole", "cut", "two"):
        (here / name).mkdir()
    for i in range(1, 8):
        content = (folder / f"ckpt{25 * i}.pt").read_bytes()
        (here / "whole" / f"ckpt{25 * i}.pt").write_bytes(content)
        (here / "cut" / f"ckpt{25 * i}.pt").write_bytes(content)
    content = (folder / "ckpt200.pt").read_bytes()
    (here / "cut/ckpt200.pt").write_bytes(content[: len(content) // 2])
    code, out, err = suggestion("cut", "--data", data)
    assert code == 0, err
    assert "left out, as it cannot be read: ckpt200.pt: File is not a zip file; cut short?" in out
    made = json.loads((here / "readouts/cut-suggest-data-data/suggestion.json").read_text())
    assert made["values"] == answer("whole", "--data", data)["values"] and "--trajectory" not in made["command"]
    file = written_by(made["command"], here) / "ckpt175.pt"
    assert nanogpt_loss(file, data) == pytest.approx(made["values"][made["id"]], rel=1e-6)
    (here / "cut/ckpt100.pt").write_bytes(b"")
    code, out, err = readout("cut", "--data", data, "--k", "2", "--spacing", "25", "--out", "read")
    assert code == 0, err
    assert out.count("cannot be read") == 2 and {row["step"] for row in rows(here / "read")} == {
        25,
        50,
        75,
        125,
        150,
        175,
    }
    for number, size in ((1, None), (2, 100), (3, 0)):
        (here / "two" / f"ckpt{number}.pt").write_bytes(content[:size])
    assert "1 checkpoint there, and 2 that cannot be read (ckpt2.pt: " in refusal("two", "--data", data)
    (here / "two/ckpt1.pt").write_bytes(b"")
    assert "no checkpoint there can be read (ckpt1.pt: " in refusal("two", "--data", data)
    code, _, err = readout("cut", "--data", data, "--k", "9", "--spacing", "25")
    assert code == 2 and "none of these averages can be had: " in err
    assert "; ckpt100.pt is left out, as it cannot be read: " in err and "; ckpt200.pt is left out" in err
    words = ["--trajectory", "cut", "--k", "2", "--spacing", "25", "--out", "mean"]
    code, _, err = in_process(lambda: _average(parser().parse_args(words)))
    assert code == 2 and "cut/ckpt100.pt is neither" in err and "to leave it out list the others" in err


def test_no_results_are_replaced(nanogpt: tuple[Path, Path], here: Path) -> None:
    """Those of other data, and of another folder of the same name; the same command writes where it wrote."""
    folder, data = nanogpt
    other = here / "other/out"
    other.mkdir(parents=True)
    for i in (1, 2, 3):
        (other / f"ckpt{i}.pt").write_bytes((folder / f"ckpt{25 * i}.pt").read_bytes())
    (here / "val.txt").write_text(TEXT)
    (here / "more").mkdir()
    (here / "more/val.txt").write_text(TEXT[:1500])
    meta = (data / "meta.pkl").read_bytes()
    for place in (here, here / "more"):
        (place / "meta.pkl").write_bytes(meta)
    commands = [(folder, "val.txt"), (folder, "more/val.txt"), (other, "val.txt"), (folder, "val.txt")]
    made = []
    for of, on in commands:
        code, out, err = suggestion(of, "--data", on)
        assert code == 0, err
        made.append(next(line.split()[1].rstrip(":") for line in out.splitlines() if line.startswith("in readouts/")))
    assert made[0] == made[3] == "readouts/out-suggest-data-val" and made[1] == "readouts/out-suggest-data-val-2"
    assert made[2] == "readouts/other-out-suggest-data-val"
    for on, end in (("val.txt", ""), ("more/val.txt", "-2")):
        code, out, err = readout(folder, "--data", on, "--k", "2", "--spacing", "25")
        assert code == 0 and f"in readouts/out-lawa-k2-s25-data-val{end}: " in out, err
    request = Request(Target("x"), Averages([], {}), Evaluation(data="val.txt"))
    other_data = replace(request, evaluation=Evaluation(data="more/val.txt"))
    (here / "readouts/x").mkdir()
    (here / "readouts/x/.writing").touch()  # what a process that was killed leaves
    with claimed(request, Path("readouts"), "x") as first, claimed(other_data, Path("readouts"), "x") as second:
        assert (str(first), str(second)) == ("readouts/x", "readouts/x-2")
    with claimed(request, Path("readouts"), "x") as again:
        assert again == first
    (here / "readouts/y").touch()
    with claimed(request, Path("readouts"), "y") as passed_over:
        assert passed_over.name.endswith("-y") and sorted(p.name for p in passed_over.iterdir()) == [
            ".writing",
            "request.json",
        ]
    assert "readouts/y is a file" in refusal(folder, "--data", "val.txt", "--out", "readouts/y")
    below = refusal("other", "--data", "val.txt", "--out", "elsewhere")
    assert "no checkpoints there" in below and "of its folders out holds checkpoints" in below
    assert "is inside RUN, where nothing is written" in refusal(other, "--data", "val.txt", "--out", other / "x")


def test_annealed_weights_are_left_alone(nanogpt: tuple[Path, Path], here: Path) -> None:
    folder, data = nanogpt
    target = here / "annealed"
    target.mkdir()
    saved = torch.load(folder / "ckpt200.pt", weights_only=True)
    for i, scale in enumerate((3.0, 2.0, 1.0, 0.5, 0.0), 1):
        draw = torch.Generator().manual_seed(i)
        state = {n: t + scale * torch.randn(t.shape, generator=draw) for n, t in saved["model"].items()}
        state["_orig_mod.lm_head.weight"] = state["_orig_mod.transformer.wte.weight"]
        torch.save({**saved, "model": state, "iter_num": i}, target / f"ckpt{i}.pt")
    made = answer("annealed", "--data", data)
    assert made["lines"][0].startswith("Averaging does not help here: take the last checkpoint, annealed/ckpt5.pt")
    assert made["command"] is None and made["id"] == "live" and made["lines"][2] == "No command is needed."


def test_a_function_in_place_of_data(nanogpt: tuple[Path, Path], here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = nanogpt
    (here / "mine_of_folder.py").write_text(
        "def loss(tensors):\n"
        "    each = [float((t.double() ** 2).mean()) for n, t in sorted(tensors.items())]\n"
        "    return {'loss': sum(each) / len(each), 'losses': each}\n"
        "def bare(tensors):\n"
        "    return loss(tensors)['loss']\n"
    )
    monkeypatch.syspath_prepend(here)
    made = answer(folder, "--evaluate", "mine_of_folder:loss")
    bare = answer(folder, "--evaluate", "mine_of_folder:bare")
    assert made["values"] == pytest.approx(bare["values"]) and "its interval is not known" in bare["lines"][1]
    saved = torch.load(written_by(bare["command"], here) / "ckpt200.pt", weights_only=True)["model"]
    each = [float((t.double() ** 2).mean()) for n, t in sorted(saved.items()) if "lm_head" not in n]
    assert min(bare["values"].values()) == pytest.approx(sum(each) / len(each), rel=0.2)


class Lit(nn.Module):
    """What a LightningModule holds under `model`."""

    block_size, vocab_size = CONTEXT, 60

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(60, width), nn.Linear(width, 60)

    def forward(self, tokens: Tensor) -> Tensor:
        made: Tensor = self.out(self.embedding(tokens).tanh())
        return made


def build() -> nn.Module:
    return Lit()


def narrow() -> nn.Module:
    return Lit(4)


def breaking() -> nn.Module:
    model = Lit()
    model.forward = lambda tokens: tokens.no_such_thing  # type: ignore[method-assign]
    return model


def test_lightning_with_a_builder(nanogpt: tuple[Path, Path], here: Path) -> None:
    _, data = nanogpt
    torch.manual_seed(1)
    (here / "lit").mkdir()
    states = list(around(Lit(), 5, 0.3))
    for i, state in enumerate(states, 1):
        content = {"state_dict": {f"model.{n}": t for n, t in state.items()}, "global_step": 10 * i, "epoch": 0}
        torch.save({**content, "pytorch-lightning_version": "2.6.6"}, here / "lit" / f"epoch=0-step={10 * i}.ckpt")
    me = __name__
    made = answer("lit", "--data", data, "--model", f"{me}:build")
    model = Lit()
    model.load_state_dict(states[-1])
    tokens = torch.from_numpy(np.fromfile(data / "val.bin", np.uint16).astype(np.int64))
    blocks = tokens[: (len(tokens) - 1) // CONTEXT * CONTEXT + 1]
    x, y = blocks[:-1].view(-1, CONTEXT), blocks[1:].view(-1, CONTEXT)
    with torch.no_grad():
        loss = float(F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
    assert made["values"]["live"] == pytest.approx(loss, rel=1e-6)
    assert "does not fit" in refusal("lit", "--data", data, "--model", f"{me}:narrow")
    raised = refusal("lit", "--data", data, "--model", f"{me}:breaking")
    assert "Lit with a batch [6, 16] raised AttributeError" in raised
    assert "which model this is of is not known" in refusal("lit", "--data", data)
    assert "expected MODULE:FUNCTION" in refusal("lit", "--data", data, "--model", f"{me}:nothing")


def test_tied_weights_that_differ_are_refused(nanogpt: tuple[Path, Path], here: Path) -> None:
    folder, data = nanogpt
    (here / "untied").mkdir()
    for i in (1, 2):
        saved = torch.load(folder / f"ckpt{25 * i}.pt", weights_only=True)
        saved["model"]["_orig_mod.lm_head.weight"] = saved["model"]["_orig_mod.lm_head.weight"] + 1
        torch.save(saved, here / "untied" / f"ckpt{25 * i}.pt")
    assert "one tensor of the model, differ" in refusal("untied", "--data", data)


def test_many_averages_in_a_pass_are_those_of_one() -> None:
    """Of tensors with odd strides, of several types, and with a snapshot that is not finite outside the windows."""
    draw = torch.Generator().manual_seed(0)
    states: dict[int, dict[str, Tensor]] = {}
    for step in range(10, 70, 10):
        w = torch.randn(7, 5, generator=draw)
        states[step] = {"w": w.t(), "b": w[0].bfloat16(), "n": torch.tensor(step), "e": torch.empty(0)}
    states[10]["w"][0, 0] = torch.inf
    averaged = frozenset({"w", "b", "e"})
    kinds = [LawaSettings(3, 10), WmaSettings(2, 20), SwaSettings(10, 30), EmaSettings(0.5, 10, 20)]
    snapshots = Snapshots({s: Path(str(s)) for s in states}, lambda path: states[int(path.name)])
    for most in (1, 4):
        averages = Mixtures(kinds, 60, snapshots, averaged, most=most).averages
        assert [a.id for a in averages] == [s.id for s in kinds] and averages[0].key(50) is None
        for settings, average in zip(kinds, averages, strict=True):
            steps = list(observed_steps(settings, 60))
            weights = settings.coefficients(steps)
            expected = weighted_mean([states[s] for s in steps[-len(weights) :]], weights, averaged)
            made = average.weights(60)
            assert made["n"] == 60 and made["b"].dtype == torch.bfloat16 and made["w"].isfinite().all()
            for name in averaged:
                torch.testing.assert_close(made[name], expected[name], rtol=2e-7 if name == "w" else 0, atol=0)


def test_padding_in_a_column_of_tokens_is_no_text() -> None:
    table = {"input_ids": [[5, 6, 0, 0], [7, 8, 9, 0]], "attention_mask": [[1, 1, 0, 0], [1, 1, 1, 0]]}
    content = of_columns(Place(Path("val.jsonl")), table, "val.jsonl")
    assert isinstance(content, TokenArray) and content.tokens.tolist() == [5, 6, 7, 8, 9]
    assert "without 3 tokens of padding" in content.note
    with pytest.raises(UserError, match="rows of other lengths"):
        of_columns(Place(Path("val.jsonl")), {**table, "attention_mask": [[1], [1]]}, "val.jsonl")


def test_quotes_in_tables(here: Path) -> None:
    """A .tsv has none, as GLUE's; in a .csv one that does not end is refused where it begins."""
    texts = [f'"{i} begins' if i % 10 == 3 else f'{i} "middle" and end"' if i % 7 == 0 else str(i) for i in range(60)]
    (here / "dev.tsv").write_text("\n".join(["sentence\tlabel", *(f"{t} x\t{i % 2}" for i, t in enumerate(texts))]))
    read = content_of_rows(Place(here / "dev.tsv", (), TEXTS))
    assert isinstance(read, Documents) and list(read.texts) == [f"{t} x" for t in texts]
    assert read.labels == [i % 2 for i in range(60)]
    (here / "dev.csv").write_text('text,label\n"a\nb, ""c""",1\nd "e",0\n')
    read = content_of_rows(Place(here / "dev.csv", (), TEXTS))
    assert isinstance(read, Documents) and list(read.texts) == ['a\nb, "c"', 'd "e"'] and read.labels == [1, 0]
    for rest in ('f,0\n"g,1\n', "f,0\n"):
        (here / "dev.csv").write_text(f'text,label\n"a\nb",1\nc,0\n"d,1\n{rest}')
        with pytest.raises(UserError, match="line 5 cannot be read as CSV"):
            content_of_rows(Place(here / "dev.csv", (), TEXTS))
