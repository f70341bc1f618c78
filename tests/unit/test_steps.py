"""Which step a checkpoint is of: what trainers write (docs/checkpoints.md), with random numbers, in random mixtures."""

from __future__ import annotations

import json
import os
import pickle
import random
import re
import resource
from pathlib import Path

import pytest
import torch
from averaged_files import average, refused, state
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as dcp

from lawa_exp import __version__
from lawa_exp.formats.checkpoint import unreadable
from lawa_exp.formats.choice import Choice
from lawa_exp.formats.inputs import listed
from lawa_exp.formats.names import UNITS, of_entry, step_in
from lawa_exp.formats.pytorch import LEGACY_MAGIC
from lawa_exp.formats.steps import Series, find_checkpoints
from lawa_exp.system.errors import UserError

TABLE = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
ROWS = [
    [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    for line in TABLE.splitlines()
    if re.match(r"\| [^|]+ \| `", line)
]
SERIES = [row for row in ROWS if row[5] != "-" and "{" in row[1] and "best" not in row[1] and "-v1" not in row[1]]
COMPANIONS = {  # what lies beside checkpoints and is no step of them
    "best.pt": "no step in its name",
    "last.ckpt": "no step in its name",
    "model_best.pth.tar": "no step in its name",
    "checkpoint_last.pt": "no step in its name",
    "model_ema.pt": "an average by its name",
    "ema_0.9999_000700.pt": "an average by its name",
    "valid.acc.ave_10best.pth": "an average by its name",
    "swa_5.safetensors": "an average by its name",
    "checkpoint.best_loss_4.1234.pt": "no step in its name",
    "resnet50-0676ba61.pth": "no step in its name",
    "model-00001-of-00004.safetensors": "shard",
    "run-2024-05-01.pt": "no step in its name",
    "ckpt-1e3.pt": "no step in its name",
    "training_args.bin": "no step in its name",
}


def number(seed: random.Random) -> int:
    return seed.choice((seed.randint(1, 20), seed.randint(1, 999), seed.randint(1, 10**6)))


def filled(name: str, seed: random.Random, **given: int) -> str:
    """The pattern with random numbers, but for those that are given."""
    fields: dict[str, object] = {
        "epoch": seed.randint(0, 400),
        "step": number(seed),
        "number": number(seed),
        "loss": f"{seed.uniform(0, 9):.{seed.randint(1, 4)}f}",
        "acc": seed.choice((f"{seed.uniform(0, 99):.2f}", str(seed.randint(0, 99)))),
        "rank": seed.randint(0, 63),
        "hash": f"{seed.randint(0, 9)}{seed.randint(0, 16**6 - 1):06x}a",
        "date": seed.choice(("{:04d}{:02d}{:02d}", "{:04d}-{:02d}-{:02d}", "{:04d}_{:02d}_{:02d}")).format(
            seed.randint(1995, 2040), seed.randint(1, 12), seed.randint(1, 28)
        ),
        "time": f"{seed.randint(0, 23):02d}-{seed.randint(0, 59):02d}-{seed.randint(0, 59):02d}",
    }
    return name.format(**{**fields, **given})


def step_of(name: str) -> tuple[int | None, str]:
    """The step that a path's name says, and its unit."""
    folder, _, file = name.partition("/")
    said = of_entry(folder, file.rpartition("/")[2]) if file else of_entry(folder, folder)
    return said.step, next((unit for unit in UNITS if unit in said.counts), "-")


def make(folder: Path, names: list[str]) -> Path:
    """Empty files: their names alone say something."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[4])
def test_what_trainers_write(row):
    _, name, _, unit, example, step = row
    assert step_of(example) == (None if step == "-" else int(step), unit)
    seed = random.Random(name)
    for _ in range(200):
        counts = {"epoch": seed.randint(0, 400), "step": number(seed)}
        counted = next((counts[field] for field in ("step", "epoch") if f"{{{field}" in name), None)
        text = filled(name, seed, **counts)
        assert step_of(text) == (None if step == "-" else counted, unit), text


def test_the_table_has_the_trainers():
    assert len({row[0].partition(",")[0] for row in SERIES}) >= 20


@pytest.mark.parametrize("trial", range(3))
@pytest.mark.parametrize("row", SERIES, ids=lambda row: row[4])
def test_a_series_in_a_random_mixture(row, trial, tmp_path):
    name, seed = row[1], random.Random(f"{row[1]} {trial}")
    field = "step" if "{step" in name else "epoch"
    steps = sorted(seed.sample(range(1, 400) if trial else range(10**5, 10**6), seed.randint(1, 6)))
    epochs = sorted(seed.randint(0, 400) for _ in steps)
    texts = [
        filled(name, seed, **({"epoch": epoch, "step": step} if field == "step" else {"epoch": step}))
        for step, epoch in zip(steps, epochs, strict=True)
    ]
    beside = seed.sample(sorted(COMPANIONS), seed.randint(0, 6))
    found = find_checkpoints(make(tmp_path, [*texts, *beside]), "RUN")
    assert list(found.paths) == found.steps == steps
    for path, text in zip(found.paths.values(), texts, strict=True):
        assert str(path.relative_to(tmp_path)) in (text, text.rpartition("/")[0])
    reasons = dict(found.left_out)
    assert reasons.keys() == set(beside) and all(COMPANIONS[each] in reasons[each] for each in beside)


VERL = [
    *("data.pt", "actor/huggingface/model.safetensors", "actor/huggingface/config.json"),
    *(f"actor/{kind}_world_size_2_rank_{rank}.pt" for kind in ("model", "optim", "extra_state") for rank in (0, 1)),
]
RANKS, NONE = "a model that is split over ranks: merge it first", "a folder without a checkpoint"
SEVERAL = "a folder that holds {} and {}; list the {} of one"
BOTH = SEVERAL.format("actor/huggingface", "critic/huggingface", "folders")
FOLDERS = {  # as trainers write them: the files in each, and the place of the checkpoint, or why there is none
    "verl": ("global_step_{}", VERL, "actor/huggingface"),
    "verl with a critic": ("global_step_{}", [*VERL, "critic/huggingface/model.safetensors"], BOTH),
    "verl on one GPU": (
        "global_step_{}",
        [f"actor/{kind}_world_size_1_rank_0.pt" for kind in ("model", "optim", "extra_state")],
        "actor/model_world_size_1_rank_0.pt",
    ),
    "Trainer with FSDP": (
        "checkpoint-{}",
        ["scheduler.pt", "pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"],
        "pytorch_model_fsdp_0",
    ),
    "Trainer with FSDP, its optimizer a file": (
        "checkpoint-{}",
        ["optimizer.bin", "pytorch_model_fsdp_0/.metadata"],
        "pytorch_model_fsdp_0",
    ),
    "an optimizer alone": ("step_{}", ["optimizer.bin"], NONE),
    "an average next to it": ("step_{}", ["model.pt", "ema.pt", "model_optim.pt"], "model.pt"),
    "evaluated by rank": ("step_{}", ["rank_eval/a.json", "rank_config.json"], NONE),
    "two models": ("step_{}", ["reranker.pt", "retriever.pt"], SEVERAL.format("reranker.pt", "retriever.pt", "files")),
    "a file and a folder": (
        "step_{}",
        ["discriminator.pt", "generator/model.pt"],
        SEVERAL.format("discriminator.pt", "generator/model.pt", "files"),
    ),
    "Composer": ("ep1-ba{}", ["model/model.pt", "optim/optim.pt", "composer_metadata.json"], "model/model.pt"),
    "diffusers": (
        "checkpoint-{}",
        [f"{part}/diffusion_pytorch_model.safetensors" for part in ("unet", "unet_ema")]
        + ["optimizer.bin", "scheduler.bin", "random_states_0.pkl"],
        "unet",
    ),
    "LLaMA-Factory": (
        "checkpoint-{}",
        ["model/model.safetensors", "optimizer/state_dict.pt", "scheduler.pt", "rng_state/rank_0.pt"],
        "model",
    ),
    "verl without hf_model": ("global_step_{}", [name for name in VERL if "model.safetensors" not in name], RANKS),
    "DeepSpeed": (
        "global_step{}",
        ["mp_rank_00_model_states.pt", *(f"zero_pp_rank_{i}_mp_rank_00_optim_states.pt" for i in (0, 1))],
        "mp_rank_00_model_states.pt",
    ),
    "DeepSpeed, split": ("global_step{}", [f"mp_rank_0{i}_model_states.pt" for i in (0, 1)], RANKS),
    "Megatron-LM": (
        "iter_{}",
        [f"mp_rank_00/{name}.pt" for name in ("model_optim_rng", "distrib_optim")],
        "mp_rank_00/model_optim_rng.pt",
    ),
    "Megatron-LM, split": ("iter_{}", [f"mp_rank_0{i}/model_optim_rng.pt" for i in (0, 1)], RANKS),
    "a run in each": ("step_{}", ["checkpoint-5/model.safetensors"], NONE),
}


@pytest.mark.parametrize("trainer", FOLDERS)
def test_the_checkpoint_in_a_folder(trainer, tmp_path, capsys):
    name, files, place = FOLDERS[trainer]
    for step in (1000, 900):
        make(tmp_path / name.format(step), files)
    if place not in (RANKS, NONE) and "; list" not in place:
        found = find_checkpoints(tmp_path, "RUN").paths
        assert {step: str(path.relative_to(tmp_path)) for step, path in found.items()} == {
            step: f"{name.format(step)}/{place}" for step in (900, 1000)
        }
        assert listed([f"{tmp_path}/{name.format('*')}"], Choice(), None).steps == [900, 1000]
        listed_ones = listed([f"{tmp_path}/{name.format('*')}/{place}"], Choice(), None)
        if "fsdp_0" not in place:  # whose own name has a number, the same in each
            assert listed_ones.steps == [900, 1000] and list(listed_ones.paths.values()) == list(found.values())
    else:
        with pytest.raises(UserError, match=rf"\({name.format(1000)}: {place}"):
            find_checkpoints(tmp_path, "RUN")
        said = refused(capsys, tmp_path / name.format(1000), "--out", tmp_path / "x")
        assert ("no checkpoint in this folder" if place == NONE else f" is {place}") in said


def test_a_listed_folder_is_what_it_holds(tmp_path, capsys):
    """As LitGPT writes them. One with several checkpoints is no input; the message says what takes them."""
    for i in (1, 2):
        (tmp_path / f"step-{i}").mkdir()
        torch.save(state(i), tmp_path / f"step-{i}" / "lit_model.pth")
        torch.save({}, tmp_path / f"step-{i}" / "optimizer.pth")
    average(tmp_path / "step-2", tmp_path / "step-1", "--out", tmp_path / "out" / "x")
    average("--trajectory", tmp_path, "--k", 2, "--out", tmp_path / "series")
    said = capsys.readouterr().out
    assert said.count("read 2 checkpoints: step 1 (step-1/lit_model.pth) to step 2 (step-2/lit_model.pth)") == 2
    one, two = (torch.load(tmp_path / folder / "lit_model.pth") for folder in ("out/x", "series"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in two)
    said = refused(capsys, tmp_path, "--out", tmp_path / "x")
    assert said.endswith(f"; --trajectory {tmp_path} takes those in it\n")
    (tmp_path / "step-2").rename(tmp_path / "ema_step-2")
    assert "an average by its name" in refused(capsys, tmp_path / "ema_step-2", "--out", tmp_path / "x")


def test_the_step_of_a_listed_folder_is_its_own(tmp_path, capsys):
    """Not that of the file in it, as `--trajectory` has it, and the output names both."""
    folders = [tmp_path / f"step_{i}00" for i in (1, 2, 3)]
    for i, folder in enumerate(folders, start=1):
        folder.mkdir()
        torch.save({"w": torch.full((2,), float(i))}, folder / f"checkpoint_{3 - i}.pt")
    average(*folders, "--method", "ema", "--decay", 0.5, "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert "step 100 (step_100/checkpoint_2.pt) to step 300 (step_300/checkpoint_0.pt)" in said
    assert "in step order: step_100/checkpoint_2.pt (0." in said
    average("--trajectory", tmp_path, "--method", "ema", "--decay", 0.5, "--at", 300, "--out", tmp_path / "series")
    (out,), (series,) = ((tmp_path / name).glob("*.pt") for name in ("out", "series"))
    assert torch.equal(torch.load(out)["w"], torch.load(series)["w"])
    for i, folder in enumerate(folders, start=1):
        (folder / f"checkpoint_{3 - i}.pt").rename(folder / "checkpoint_0.pt")
    assert listed([str(f) for f in folders], Choice(), None).steps == [100, 200, 300]


def test_a_damaged_list_is_of_its_folder_alone(tmp_path):
    make(tmp_path, ["ckpt_5/model_index.json", "ckpt_3/model.safetensors", "ckpt_4/model.safetensors"])
    found = find_checkpoints(tmp_path, "RUN")
    assert found.steps == [3, 4] and found.left_out[0][0] == "ckpt_5" and "damaged" in found.left_out[0][1]
    for i in (3, 4):
        save_file({"w": torch.ones(2)}, tmp_path / f"ckpt_{i}" / "model.safetensors")
    found = find_checkpoints(tmp_path, "RUN", only_readable=True)
    assert found.steps == [3, 4] and [name for name, _ in found.unreadable] == ["ckpt_5"]


def test_what_cannot_be_read_for_the_machine_is_not_damaged(tmp_path):
    """A limit of ours is said of the file; a fault of the disk or too many open files is raised."""
    path = tmp_path / "ckpt_1.pt"
    head = b"".join(pickle.dumps(part, 2) for part in (LEGACY_MAGIC, 1001, {}))
    path.write_bytes(head + b"\x80\x02})" + b"2\x86" * 40 + b"K\x01s.")  # a key of 2^40 values
    assert "not read: it holds a tuple" in unreadable(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(tmp_path, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            unreadable(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_optimizers_in_files_of_their_own(tmp_path):
    """As nanochat writes them."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=1)
    for step in (100, 200):
        torch.save(state(step), tmp_path / f"model_{step:06d}.pt")
        torch.save(optimizer.state_dict(), tmp_path / f"optim_{step:06d}_rank0.pt")
        torch.save([optimizer.state_dict()], tmp_path / f"optim_{step:06d}_rank1.pt")
    found = find_checkpoints(tmp_path, "RUN")
    assert [path.name for path in found.paths.values()] == ["model_000100.pt", "model_000200.pt"]
    whys = {"optim_000100_rank0.pt": "an optimizer's state", "optim_000100_rank1.pt": "no dictionary of weights"}
    assert dict(found.left_out).items() >= whys.items()


@pytest.mark.parametrize(
    ("name", "whose"),
    {
        "07-0.12.weights.h5": "a file of Keras",
        "model_07.keras": "a file of Keras",
        "step_500.msgpack": "a file of Flax",
        "model_7.gguf": "a file of llama.cpp",
        "1000/default/_METADATA": "a folder of Orbax (JAX)",
        "checkpoint_1000/_CHECKPOINT_METADATA": "a folder of Orbax (JAX)",
    }.items(),
)
def test_formats_that_are_not_read(name, whose, tmp_path, capsys):
    """Alone they are refused with their format's name, among others left out."""
    make(tmp_path, [name])
    entry = name.partition("/")[0]
    assert f"({entry}: {whose}, which is not read)" in refused(
        capsys, "--trajectory", tmp_path, "--out", tmp_path / "x"
    )
    assert whose in refused(capsys, tmp_path / entry, "--out", tmp_path / "x")
    make(tmp_path, ["step_3.pt"])
    found = find_checkpoints(tmp_path, "RUN")
    assert list(found.paths) == [3] and (entry, f"{whose}, which is not read") in found.left_out


def test_powers_of_ten():
    """Behind a word that counts a number is one; behind another word it is a rate, and no epoch 3."""
    said = {
        "step_1e6.pt": 10**6,
        "1e3_steps.pt": 1000,
        "e3.pt": 3,
        "model_e3.pt": 3,
        "ckpt-1e3.pt": None,
        "lr1e3.pt": None,
    }
    assert {name: step_in(name) for name in said} == said
    assert step_in("ckpt_2e4_step_500.pt") == 500


def test_epochs_and_updates_are_not_mixed(tmp_path):
    """F8. The message prints the expression that takes one kind."""
    names = [f"epoch-{e}.pt" for e in (1, 2, 3)] + ["checkpoint-4000.pt", "checkpoint-8000.pt"]
    make(tmp_path / "icefall", names)
    names = [f"checkpoint{e}.pt" for e in (1, 2, 3)] + [f"checkpoint_{e}_{e * 500}.pt" for e in (1, 2, 3)]
    make(tmp_path / "fairseq", [*names, "checkpoint.best_loss_4.1234.pt", "checkpoint_last.pt"])
    make(tmp_path / "basicsr", [f"net_{part}_{step}.pth" for part in "gd" for step in (5000, 10000)])
    make(tmp_path / "plain", ["500.pt", "step_600.pt"])
    make(tmp_path / "epochs", ["epoch=1-loss=0.5.ckpt", "step=700-loss=0.4.ckpt"])
    kinds = {
        "icefall": [[1, 2, 3], [4000, 8000]],
        "fairseq": [[1, 2, 3], [500, 1000, 1500]],
        "basicsr": [[5000, 10000], [5000, 10000]],
        "plain": [[500], [600]],
        "epochs": [[1], [700]],
    }
    for folder, wanted in kinds.items():
        with pytest.raises(UserError, match="not counted alike") as refusal:
            find_checkpoints(tmp_path / folder, "RUN")
        ways = re.findall(r"--step-from '(\S+)'", str(refusal.value))
        found = [find_checkpoints(tmp_path / folder, "RUN", Choice(way)) for way in ways]
        assert sorted(list(each.paths) for each in found) == wanted
        others = {name for each in found for name, why in each.left_out if "no match of --step-from" in why}
        assert others


LIBRARIES = {  # what the files of each hold, as far as steps go, and the step they are of
    "Lightning": ({"epoch": 3, "global_step": 700, "pytorch-lightning_version": "2.6.6"}, "step", 700),
    "timm": ({"epoch": 7, "arch": "resnet18", "version": 2}, "epoch", 7),
    "nanoGPT": ({"iter_num": 250, "best_val_loss": 1.0, "config": {}}, "step", 250),
    "LitGPT": ({"iter_num": 800, "step_count": 100}, "step", 100),
    "DeepSpeed": ({"global_steps": 40, "global_samples": 640}, "step", 40),
    "Megatron-LM": ({"iteration": 500, "checkpoint_version": 3.0}, "step", 500),
    "icefall": ({"batch_idx_train": 900, "cur_epoch": 2}, "step", 900),
    "mmengine": ({"meta": {"epoch": 2, "iter": 60}}, "step", 60),
    "nnU-Net": ({"current_epoch": 50, "init_args": {}}, "epoch", 50),
    "OpenNMT-py": ({"optim": {"training_step": 35, "optimizer": {}}}, "step", 35),
    "Composer": ({"state": {"timestamp": {"epoch": 1, "batch": 90, "sample": 720}}}, "step", 90),
    "fairseq": (
        {"optimizer_history": [{"num_updates": 15}], "extra_state": {"train_iterator": {"epoch": 4}}},
        "step",
        15,
    ),
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_step_inside_comes_first(library, tmp_path):
    """With nothing in the names; with the epoch's or another number in them; and older files of torch."""
    fields, unit, step = LIBRARIES[library]
    weights = {"state_dict": {"w": torch.ones(2)}}
    torch.save({**weights, **fields}, tmp_path / "a.pt")
    torch.save({**weights, **fields}, tmp_path / "last.ckpt", _use_new_zipfile_serialization=False)
    found = find_checkpoints(tmp_path, "RUN")
    assert (list(found.paths), found.unit) == ([step], unit) and "in the files" in found.how
    assert found.left_out == [("last.ckpt", f"of step {step:,}, as a.pt")]
    (tmp_path / "a.pt").rename(tmp_path / f"{unit}={step + 31}.pt")
    found = find_checkpoints(tmp_path, "RUN")
    assert list(found.paths) == [step] and "last.ckpt" in dict(found.left_out)
    assert f"{unit}={step + 31}.pt is of {unit} {step:,}, by" in found.notes[0]
    assert find_checkpoints(tmp_path, "RUN", Choice(r"=(\d+)")).steps == [step + 31]


def test_a_trainers_folder_says_its_step(tmp_path):
    for step in (10, 20):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        save_file({"w": torch.ones(2)}, folder / "model.safetensors", {"format": "pt"})
        torch.save({"state": {}, "param_groups": []}, folder / "optimizer.pt")
        content = {"epoch": 1.0, "global_step": step + 5, "log_history": [{"step": 3}]}
        (folder / "trainer_state.json").write_text(json.dumps(content, indent=2, sort_keys=True))
    found = find_checkpoints(tmp_path, "RUN")
    assert list(found.paths) == [15, 25] and found.how == "global_step in trainer_state.json in the files"
    assert "note: checkpoint-10 (and 1 more) is of step 15" in found.notes[0]
    torch.save({"state": {}, "param_groups": []}, tmp_path / "optimizer-30.pt")
    assert ("optimizer-30.pt", "an optimizer's state") in find_checkpoints(tmp_path, "RUN").left_out


def test_two_files_of_one_step(tmp_path):
    make(tmp_path, ["checkpoint_100.pth", "checkpoint_200.pth", "best_model_200.pth"])
    (tmp_path / "checkpoint_300.pth").symlink_to("checkpoint_200.pth")
    found = find_checkpoints(tmp_path, "RUN")
    assert list(found.paths) == [100, 200, 300] and "by its name a copy" in dict(found.left_out)["best_model_200.pth"]
    make(tmp_path / "lightning", ["epoch=1-step=20.ckpt", "epoch=1-step=20-v1.ckpt"])
    with pytest.raises(UserError, match=r"epoch=1-step=20-v1.ckpt and epoch=1-step=20.ckpt are both of step 20;"):
        find_checkpoints(tmp_path / "lightning", "RUN")
    make(tmp_path / "mmengine", ["epoch_1.pth", "epoch_2.pth", "best_acc_epoch_2.pth"])
    found = find_checkpoints(tmp_path / "mmengine", "RUN")
    assert list(found.paths) == [1, 2] and found.left_out == [("best_acc_epoch_2.pth", "of step 2, as epoch_2.pth")]
    make(tmp_path / "batches", ["model_0_500.pt", "model_1_100.pt"])  # of the batch in the epoch
    with pytest.raises(UserError, match="which is the order is not clear"):
        find_checkpoints(tmp_path / "batches", "RUN")
    make(tmp_path / "none", ["resnet50.pth", "gpt2-124M.pt"])
    with pytest.raises(UserError, match=r"no step is known of gpt2-124M.pt, resnet50.pth; --step-from REGEX"):
        find_checkpoints(tmp_path / "none", "RUN")


TWO_ORDERS = {  # names, and what the files say; and which two are ordered otherwise by what
    "inside": (
        {"a.pt": {"epoch": 2, "global_step": 100}, "b.pt": {"epoch": 1, "global_step": 200}},
        "a.pt is before b.pt by updates and after it by the epochs inside",
    ),
    "in the names": (
        {"epoch=5-step=100.ckpt": {}, "epoch=0-step=200.ckpt": {}},
        "epoch=5-step=100.ckpt is before epoch=0-step=200.ckpt by updates and after it by the epochs in the names",
    ),
    "name and inside": (
        {f"epoch_{i}.pt": {"global_step": step} for i, step in ((1, 300), (2, 200), (3, 400))},
        "epoch_2.pt is before epoch_1.pt by updates and after it by the epochs in the names",
    ),
    "of one unit": (
        {"step_10.pt": {"step": 30}, "step_20.pt": {"step": 25}},
        "step_20.pt is before step_10.pt by updates and after it by the updates in the names",
    ),
    "without a unit": (
        {"ckpt_1.pt": {"epoch": 9}, "ckpt_2.pt": {"epoch": 8}, "ckpt_3.pt": {"epoch": 10}},
        "ckpt_2.pt is before ckpt_1.pt by epochs and after it by the numbers without a unit in the names",
    ),
    "batches alone": (
        {"epoch_1_batch_500.pt": {}, "epoch_2_batch_100.pt": {}, "epoch_1_batch_90.pt": {}},
        "epoch_2_batch_100.pt is before epoch_1_batch_500.pt by batches and after it by the epochs in the names",
    ),
}


@pytest.mark.parametrize("kind", TWO_ORDERS)
def test_what_orders_the_files_in_two_ways_is_refused(kind, tmp_path, capsys):
    """In a folder. Listed files stay as they are listed, with a warning."""
    files, words = TWO_ORDERS[kind]
    for name, said in files.items():
        torch.save({"model": {"w": torch.ones(2)}, **said}, tmp_path / name)
    with pytest.raises(UserError) as refusal:
        find_checkpoints(tmp_path, "RUN")
    assert words in str(refusal.value)
    average(*(tmp_path / name for name in files), "--out", tmp_path / "out")
    assert f"warning: which is the order is not clear ({words})" in capsys.readouterr().out


def test_batches_may_begin_anew_with_each_epoch(tmp_path):
    for i, name in enumerate(("epoch_1_batch_50.pt", "epoch_1_batch_90.pt", "epoch_2_batch_40.pt"), start=1):
        torch.save({"model": {"w": torch.ones(2)}, "global_step": i}, tmp_path / name)
    assert list(find_checkpoints(tmp_path, "RUN").paths) == [1, 2, 3]


def test_step_from(tmp_path, capsys):
    for i, name in enumerate(("a7b20.pt", "a3b30.pt", "a5b10.pt"), start=1):
        torch.save(state(i), tmp_path / name)
    out = ("--out", tmp_path / "out", "--overwrite")
    average("--trajectory", tmp_path, "--step-from", r"b(\d+)", "--k", 2, *out)
    said = capsys.readouterr().out
    assert r"read 3 checkpoints: step 10 (a5b10.pt) to step 30 (a3b30.pt), by --step-from=b(\d+)" in said
    average(*(tmp_path / f"{name}.pt" for name in ("a7b20", "a3b30", "a5b10")), "--step-from", r"a(\d+)", *out)
    assert "in step order: a3b30.pt, a5b10.pt, a7b20.pt" in capsys.readouterr().out
    average("--trajectory", tmp_path, "--step-from", r"b([13]\d)", "--k", 1, *out)
    assert r"left out: a7b20.pt (no match of --step-from=b([13]\d))" in capsys.readouterr().out
    for expression, words in {
        "b": "expected one group",
        r"(a)(\d)": "expected one group",
        "b(": "no regular expression",
        "(b)": "the group is 'b' in a3b30.pt; expected a whole number",
        r"z(\d)": "matches none of a3b30.pt, a5b10.pt, a7b20.pt",
        r"b\d(0)": "are both of step 0;",
    }.items():
        assert words in refused(capsys, "--trajectory", tmp_path, "--step-from", expression, *out)


def test_what_was_read_and_what_was_left_out(tmp_path, capsys):
    for i in (10, 20, 30):
        torch.save(state(i), tmp_path / f"ckpt_{i}.pth.tar")  # F11
    make(tmp_path, ["best.pt", "last.pt", "model_ema.pt", "swa.pt", "x-v2.pt"])
    average("--trajectory", tmp_path, "--k", 2, "--at", 20, "--out", tmp_path / "out")
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "read 2 of 3 checkpoints: step 10 (ckpt_10.pth.tar) to step 20 (ckpt_20.pth.tar), by the names"
    assert said[2].startswith("left out: ") and said[2].endswith("; ... 2 more (--verbose lists them)")
    average("--trajectory", tmp_path, "--k", 2, "--at", 20, "--out", tmp_path / "out", "--verbose")
    said = capsys.readouterr().out.splitlines()
    assert (
        said[2].count(" (") == 6 and "out (a folder without" in said[2] and "swa.pt (an average by its name)" in said[2]
    )


def hugging_face(folder: Path, i: int) -> Path:
    folder.mkdir()
    tensors = {name: t.contiguous().clone() for name, t in state(i).items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}")
    return folder


def distributed_checkpoint(folder: Path, i: int) -> Path:
    dcp.save({"model": {"w": torch.full((3,), float(i))}}, checkpoint_id=folder)
    return folder


def pytorch(path: Path, i: int) -> Path:
    torch.save({"model": state(i), "iter_num": i}, path)
    return path


def plain(path: Path, i: int) -> Path:
    torch.save(state(i), path)
    return path


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("kind", [hugging_face, distributed_checkpoint, pytorch, plain])
def test_our_averages_say_what_they_are_and_are_not_averaged_again(kind, tmp_path, capsys):
    suffix = "" if "_" in kind.__name__ else ".pt"
    made = [kind(tmp_path / f"ckpt_{i}{suffix}", i) for i in (1, 2, 3, 4)]
    for out in ("one", "two"):
        average(*made[:2], "--out", tmp_path / out)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert [(tmp_path / "one" / n).read_bytes() for n in names if n != ".metadata"] == [
        (tmp_path / "two" / n).read_bytes() for n in names if n != ".metadata"
    ]
    again = tmp_path / "one" / ("" if suffix == "" else "ckpt_2.pt")
    (tmp_path / f"ckpt_9{suffix}").symlink_to(again)
    average("--trajectory", tmp_path, "--k", 4, "--out", tmp_path / "x")
    said = capsys.readouterr().out
    assert "read 4 checkpoints" in said and f"ckpt_9{suffix}" in said
    assert "an average of ours (lawa of 2 checkpoints)" in said.partition("left out: ")[2]
    assert "is an average already" in refused(capsys, made[0], again, "--out", tmp_path / "x")
    average(made[0], again, "--include-averages", "--out", tmp_path / "y")
    assert "note: averages that --include-averages takes in: " in capsys.readouterr().out
    by_hand = ("--include-averages", "--step-from", r"ckpt_(\d+)")
    average("--trajectory", tmp_path, "--k", 1, "--at", 9, *by_hand, "--out", tmp_path / "z")
    if kind is pytorch:
        assert torch.load(again, weights_only=True)["iter_num"] == 2
    if kind is plain:
        assert list(torch.load(again, weights_only=True)) == list(state(1))


def test_the_metadata_of_an_average(tmp_path):
    for i in (10, 20, 30):
        save_file({"w": torch.full((2,), float(i))}, tmp_path / f"ckpt_{i}.safetensors", {"format": "pt"})
    average(tmp_path / "ckpt_*.safetensors", "--method", "ema", "--decay", 0.5, "--out", tmp_path / "out")
    header = (tmp_path / "out" / "model.safetensors").read_bytes()
    metadata = json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["__metadata__"]
    about = json.loads(metadata["lawa_exp"])
    assert metadata["format"] == "pt" and about["averager"] == "ema" and about["settings"]["decay"] == 0.5
    assert about["steps"] == [10, 20, 30] and about["inputs"] == 3 and about["lawa_exp"] == __version__
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [22.5, 22.5]
    average("--trajectory", tmp_path, "--k", 2, "--out", tmp_path / "windows")
    with pytest.raises(UserError, match="all 2 are averages already"):
        find_checkpoints(tmp_path / "windows", "RUN")


def test_an_average_of_files_without_metadata_is_loaded_by_accelerate(tmp_path):
    modeling = pytest.importorskip("accelerate.utils.modeling")
    for i in (1, 2):
        save_file({"w": torch.full((2,), float(i))}, tmp_path / f"ckpt_{i}.safetensors")
    average(tmp_path / "ckpt_*.safetensors", "--out", tmp_path / "out")
    assert modeling.load_state_dict(str(tmp_path / "out" / "model.safetensors"))["w"].tolist() == [1.5, 1.5]


def test_other_libraries_averages_are_known_by_their_content(tmp_path):
    """torch's by a real AveragedModel; Lightning's and mmengine's by the keys that their code writes."""
    linear = torch.nn.Linear(2, 1)
    averaged = torch.optim.swa_utils.AveragedModel(linear)
    averaged.update_parameters(linear)
    weights = linear.state_dict()
    torch.save(averaged.state_dict(), tmp_path / "model_1.pt")
    torch.save({"state_dict": weights, "current_model_state": weights, "averaging_state": {}}, tmp_path / "model_2.pt")
    mmengine = {"state_dict": weights, "ema_state_dict": weights, "meta": {"mmengine_version": "0.10", "epoch": 3}}
    torch.save(mmengine, tmp_path / "model_3.pt")
    torch.save({"state_dict": weights, "state_dict_ema": weights, "epoch": 4}, tmp_path / "model_4.pt")  # timm's
    found: Series = find_checkpoints(tmp_path, "RUN")
    assert list(found.paths) == [4]
    whose = dict(found.left_out)
    for name, words in {"1": "AveragedModel", "2": "current_model_state", "3": "EMAHook"}.items():
        assert words in whose[f"model_{name}.pt"]
    assert list(find_checkpoints(tmp_path, "RUN", Choice(key="current_model_state")).paths) == [2, 4]


def test_a_runs_averages_are_no_trajectory(tmp_path, capsys):
    from averaged_files import trajectory

    run = trajectory(tmp_path / "run", range(5, 20, 5))
    (run / "averages").mkdir()
    (run / "trajectory").rename(run / "averages" / "lawa-k2-s5")
    with pytest.raises(UserError, match="these are averages already; --include-averages"):
        find_checkpoints(run / "averages" / "lawa-k2-s5", "RUN")
    assert list(find_checkpoints(run / "averages" / "lawa-k2-s5", "RUN", Choice(None, True)).paths) == [5, 10, 15]
    (run / "averages").rename(tmp_path / "on another disk")
    (run / "averages").symlink_to(tmp_path / "on another disk")
    with pytest.raises(UserError, match="these are averages already; --include-averages"):
        find_checkpoints(run / "averages" / "lawa-k2-s5", "RUN")
    one = run / "averages" / "lawa-k2-s5" / "step_00000010"
    for path in (one, one / "model.safetensors"):
        assert "is an average already" in refused(capsys, path, "--out", tmp_path / "x")


def test_listed_files_are_never_ordered_by_a_metric(tmp_path, capsys):
    names = ["acc_95-a.pt", "acc_91-b.pt", "acc_93-c.pt"]
    for i, name in enumerate(names):
        torch.save(state(i), tmp_path / name)
    average(*(tmp_path / name for name in names), "--out", tmp_path / "out")
    said = capsys.readouterr().out
    assert f"as listed: {', '.join(names)}" in said and "warning: no step is known of acc_95-a.pt" in said
