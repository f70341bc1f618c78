"""The callback in the real Hugging Face `Trainer`: a GPT-2 of 4,000 parameters with dropout, made here."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import example

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from safetensors.torch import load_file  # noqa: E402
from transformers import EarlyStoppingCallback, GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments  # noqa: E402

from lawa_exp.averaging import (  # noqa: E402
    Bema,
    Ema,
    Lawa,
    PowerEma,
    Swa,
    Window,
    Wma,
    hf,
)
from lawa_exp.averaging.hf import AveragingCallback  # noqa: E402

STEPS = 12
IDS = ["lawa-k3-s2", "wma-k2-s3", "ema-d0.8-e1", "power_ema-w0.1-e1", "swa-e1-from4", "bema-e2-p0.5-b0.2-l10"]


def averagers(model):
    window = Window()
    return [
        Lawa(model, k=3, spacing=2, window=window),
        Wma(model, k=2, spacing=3, window=window),
        Ema(model, decay=0.8),
        PowerEma(model),
        Swa(model, start=4),
        Bema(model, every=2),
    ]


def make_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=17, n_positions=8, n_embd=16, n_layer=1, n_head=2))


def make_trainer(folder: Path, average=averagers, resume=True, callbacks=(), load_best=False, **arguments) -> Trainer:
    """Trains for 12 steps; a checkpoint every 4, an evaluation every 2. average: None for a trainer without ours."""
    data = np.random.default_rng(0).integers(0, 17, (40, 8))
    data = [{"input_ids": torch.tensor(row), "labels": torch.tensor(row)} for row in data]
    given = {
        "max_steps": STEPS,
        "learning_rate": 0.02,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 4,
        "logging_steps": 1,
        "report_to": [],
        "use_cpu": True,
        "seed": 1,
    }
    trainer = Trainer(
        make_model(),
        TrainingArguments(str(folder), **given | arguments),
        train_dataset=data[:32],
        eval_dataset=data[32:],
        callbacks=list(callbacks),
    )
    if average:
        trainer.add_callback(AveragingCallback(trainer, average, resume, load_best))
    return trainer


def callback_of(trainer: Trainer) -> AveragingCallback:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, AveragingCallback))


def averages_of(trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    return {a.id: a.average() for a in callback_of(trainer).averagers}


def assert_same(a, b) -> None:
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def evaluations(trainer: Trainer) -> list[dict[str, float]]:
    timed = ("_runtime", "_per_second", "_preparation_time")
    rows = [row for row in trainer.state.log_history if any(key.startswith("eval") for key in row)]
    return [{k: v for k, v in row.items() if not k.endswith(timed)} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Trainer:
    trainer = make_trainer(tmp_path_factory.mktemp("undisturbed"))
    trainer.train()
    return trainer


def test_training_and_checkpoints_are_those_of_a_trainer_without_the_callback(undisturbed, tmp_path):
    without = make_trainer(tmp_path, average=None)
    without.train()
    folder = Path(undisturbed.args.output_dir)
    for step in (4, 8, 12):
        mine, other = ({p.name for p in (f / f"checkpoint-{step}").iterdir()} for f in (folder, tmp_path))
        assert mine == other | {"averages_0.pt"}
        mine, other = (load_file(f / f"checkpoint-{step}" / "model.safetensors") for f in (folder, tmp_path))
        assert_same(mine, other)
        optimizers = [torch.load(f / f"checkpoint-{step}" / "optimizer.pt")["state"] for f in (folder, tmp_path)]
        assert all(torch.equal(optimizers[0][i]["exp_avg"], optimizers[1][i]["exp_avg"]) for i in optimizers[0])
    losses = [[row["loss"] for row in t.state.log_history if "loss" in row] for t in (undisturbed, without)]
    assert len(losses[0]) == STEPS and losses[0] == losses[1]
    live = [[row["eval_loss"] for row in t.state.log_history if "eval_loss" in row] for t in (undisturbed, without)]
    assert len(live[0]) == STEPS // 2 and live[0] == live[1]


def test_averages_are_evaluated_once_they_are_defined(undisturbed):
    rows = {(row["step"], key): value for row in evaluations(undisturbed) for key, value in row.items()}
    for step in range(2, STEPS + 1, 2):
        for id, first in zip(IDS, (6, 6, 1, 1, 4, 2), strict=True):
            assert ((step, f"eval_{id}_loss") in rows) == (step >= first)
    trainer = make_trainer(Path(undisturbed.args.output_dir), average=None)
    for id, average in averages_of(undisturbed).items():
        trainer.model.load_state_dict(average, strict=False)
        trainer.model.tie_weights()
        assert trainer.evaluate()["eval_loss"] == rows[STEPS, f"eval_{id}_loss"] != rows[STEPS, "eval_loss"]


@pytest.mark.parametrize("stop", [4, 8])
def test_a_resumed_training_has_the_same_averages(undisturbed, tmp_path, stop):
    make_trainer(tmp_path, max_steps=stop, lr_scheduler_type="constant").train()
    assert (tmp_path / "averages" / "lawa-k3-s2").exists() == (stop >= 6)
    resumed = make_trainer(tmp_path, lr_scheduler_type="constant")
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer(tmp_path / "whole", lr_scheduler_type="constant")
    whole.train()
    for id, average in averages_of(whole).items():
        assert_same(average, averages_of(resumed)[id])
    assert evaluations(resumed) == evaluations(whole)


def test_a_checkpoint_without_averages_is_not_passed_over(tmp_path):
    make_trainer(tmp_path, average=None, max_steps=4).train()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-4/averages_0.pt: the checkpoint was cut short"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)
    late = make_trainer(tmp_path, resume=False)
    late.train(resume_from_checkpoint=True)
    late = {a.id: a for a in callback_of(late).averagers}
    assert late["lawa-k3-s2"].defined and late["swa-e1-from4"].averager.count == STEPS - 4
    elsewhere = make_trainer(tmp_path / "new", resume=tmp_path / "checkpoint-8", max_steps=10)
    elsewhere.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert {a.id: a for a in callback_of(elsewhere).averagers}["swa-e1-from4"].averager.count == 6
    other = make_trainer(tmp_path, average=lambda model: [Lawa(model, k=4, spacing=2)])
    with pytest.raises(ValueError, match="holds no lawa-k4-s2, but lawa-k3-s2, wma-k2-s3"):
        other.train(resume_from_checkpoint=True)


def test_averaged_models_are_written_as_model_folders(undisturbed):
    folder = Path(undisturbed.args.output_dir)
    assert sorted(p.name for p in (folder / "averages").iterdir()) == sorted(IDS)
    for id, average in averages_of(undisturbed).items():
        model = GPT2LMHeadModel.from_pretrained(folder / "averages" / id)
        assert all(torch.equal(average[n], t) for n, t in model.state_dict().items() if n in average)
        assert model.lm_head.weight is model.transformer.wte.weight
    assert json.loads((folder / "averages" / IDS[0] / "config.json").read_text())["vocab_size"] == 17
    assert transformers.trainer_utils.get_last_checkpoint(str(folder)) == str(folder / "checkpoint-12")


def test_with_the_best_model_early_stopping_and_several_sets(tmp_path):
    """They see the live metrics under their own names."""
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_a_loss", "save_steps": 2}
    trainer = make_trainer(tmp_path, callbacks=[EarlyStoppingCallback(1)], learning_rate=1.0, **best)
    trainer.eval_dataset = {"a": trainer.eval_dataset[:4], "b": trainer.eval_dataset[4:]}
    trainer.train()
    rows = evaluations(trainer)
    losses = [row["eval_a_loss"] for row in rows if "eval_a_loss" in row]
    assert losses[-1] > min(losses) == trainer.state.best_metric and len(losses) < STEPS // 2
    assert all(any(f"eval_{name}_ema-d0.8-e1_loss" in row for row in rows) for name in "ab")
    found = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    assert all(torch.equal(found[n], t) for n, t in trainer.model.state_dict().items() if n in found)
    with callback_of(trainer).averagers[2].applied():
        metrics = trainer.evaluate()  # of that average alone
    assert not any("ema" in key for key in metrics)


BY_LOSS = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "save_steps": 2, "load_best": True}


def values_of(trainer: Trainer, name: str = "loss") -> dict[tuple[int, str], float]:
    """Of each evaluation of live weights ("") and averages."""
    rows = {(r["step"], k): v for r in evaluations(trainer) for k, v in r.items() if k.startswith("eval_")}
    return {(s, k[5:].removesuffix(name).strip("_")): v for (s, k), v in rows.items() if k.endswith(name)}


def loss_now(trainer: Trainer) -> float:
    callback = callback_of(trainer)
    trainer.remove_callback(callback)
    return trainer.evaluate()["eval_loss"]


@pytest.mark.parametrize("rate, is_live", [(0.02, True), (0.5, False)])
def test_the_best_of_live_weights_and_averages_is_loaded(rate, is_live, tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=rate, **BY_LOSS)
    trainer.train()
    values, best = values_of(trainer), callback_of(trainer).best
    of_averages = {key: value for key, value in values.items() if key[1]}
    assert (best.step, best.id) == min(of_averages, key=of_averages.get) and best.value == min(of_averages.values())
    assert (min(values, key=values.get)[1] == "") == is_live and loss_now(trainer) == min(values.values())
    trainer.save_model(tmp_path / "saved")
    saved = GPT2LMHeadModel.from_pretrained(tmp_path / "saved").state_dict()
    assert all(torch.equal(saved[name], t) for name, t in trainer.model.state_dict().items())


def test_the_best_is_kept_when_it_was_early_and_the_training_is_resumed(tmp_path):
    """By a metric of which greater is better, and which falls: the first evaluation is the best."""
    options = {**BY_LOSS, "metric_for_best_model": "score", "greater_is_better": True, "lr_scheduler_type": "constant"}

    def with_score(folder, **more):
        trainer = make_trainer(
            folder, average=lambda m: [Ema(m, decay=0.5), Lawa(m, k=2, spacing=1)], **options, **more
        )
        inner = trainer.evaluation_loop

        def evaluation_loop(*arguments, metric_key_prefix="eval", **others):
            output = inner(*arguments, metric_key_prefix=metric_key_prefix, **others)
            bonus = np.float64("lawa" in metric_key_prefix)
            output.metrics[f"{metric_key_prefix}_score"] = bonus - trainer.state.global_step
            return output

        trainer.evaluation_loop = evaluation_loop
        return trainer

    with_score(tmp_path, max_steps=6).train()
    resumed = with_score(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    best = callback_of(resumed).best
    assert (best.id, best.step, best.value) == ("lawa-k2-s1", 2, -1.0)
    assert resumed.state.best_metric == -2.0
    states = []
    for step in (1, 2):  # the same training, which is not stopped
        trainer = make_trainer(tmp_path / "short", average=None, max_steps=step, lr_scheduler_type="constant")
        trainer.train()
        states.append({n: p.detach().double().clone() for n, p in trainer.model.named_parameters()})
    for name, parameter in resumed.model.named_parameters():
        assert torch.equal(parameter.detach(), ((states[0][name] + states[1][name]) / 2).float())


def test_load_best_says_what_a_checkpoint_without_it_does_not_know(undisturbed, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(hf.logger, "warning", said.append)
    checkpoint = Path(undisturbed.args.output_dir) / "checkpoint-8"
    trainer = make_trainer(tmp_path, resume=checkpoint, **BY_LOSS)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert [s for s in said if "checkpoint-8/averages_0.pt was saved without load_best: averages before step 8" in s]
    assert callback_of(trainer).best.step in (10, 12)


def test_the_page_on_loops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {name: value for name, value in BY_LOSS.items() if name != "load_best"}
    trainer = make_trainer(tmp_path / "out", average=None, learning_rate=0.5, **options)
    names = {"trainer": trainer}
    exec(example("loops.md", "load_best=True"), names)
    best = names["averaging"].best
    assert best.value < trainer.state.best_metric and best.value == min(values_of(trainer).values())
    assert sorted(p.name for p in Path("out/averages").iterdir()) == ["ema-d0.99-e1", "lawa-k3-s2"]
    saved = GPT2LMHeadModel.from_pretrained("best").state_dict()
    assert all(torch.equal(saved[name], tensor) for name, tensor in best.weights.items())


def test_what_load_best_refuses(tmp_path):
    with pytest.raises(ValueError, match=r"load_best=True needs TrainingArguments\(load_best_model_at_end=True\)"):
        make_trainer(tmp_path, load_best=True).train()
    by_average = BY_LOSS | {"metric_for_best_model": "eval_ema-d0.8-e1_loss"}
    with pytest.raises(
        ValueError, match=r"metric_for_best_model=eval_ema-d0\.8-e1_loss is of an average; .* eval_loss"
    ):
        make_trainer(tmp_path, **by_average).train()
