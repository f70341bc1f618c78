"""What a configuration resolves to, and what is in the name of a trajectory."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import yaml

from lawa_exp.axes.dataset import stated as stated_sizes
from lawa_exp.axes.dataset.image_files import Cifar100Settings
from lawa_exp.axes.dataset.images import complete
from lawa_exp.axes.dataset.stated import stated
from lawa_exp.axes.dataset.tokens import TokensSettings
from lawa_exp.axes.model.papers_names import PAPERS_NAMES
from lawa_exp.axes.update.settings import UpdateSettings
from lawa_exp.launch.compose import compose, main, read
from lawa_exp.parallel.sharing import Split, split_batch
from lawa_exp.runs.choices import config_to, unresolved_from
from lawa_exp.runs.cost import tensors_and_cost
from lawa_exp.runs.merge import merge
from lawa_exp.runs.plan import show_plan, warnings
from lawa_exp.runs.prepare import prepare
from lawa_exp.runs.resolve import resolve
from lawa_exp.system import machine
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError


def prepared(*arguments, ranks=None):
    ((values, overrides),), _ = compose(list(arguments))
    config, options = read(values, overrides)
    return prepare(config, options, torch.device("cpu"), ranks or Ranks())


def plan_of(*arguments):
    p = prepared(*arguments)
    return show_plan(p, Ranks())


def test_budgets_in_every_unit():
    per_epoch = prepared().data.sizes["train"] / 16
    assert prepared("steps=7").config.steps == 7
    assert prepared("samples=33").config.steps == 3  # the first step at which the budget is reached
    assert prepared("tokens=204800").config.steps == 100
    assert prepared("epochs=2").config.steps == -(-2 * per_epoch // 1)


def test_steps_written_as_epochs_and_shares_of_the_horizon():
    config = prepared("steps=200", "averagers.swa.start=75%", "evaluate.every=0.5epoch", "lr.warmup_steps=2.5%").config
    assert config.averagers[-1].start == 150 and config.lr.warmup_steps == 5
    assert config.evaluate.every == -(-prepared().data.sizes["train"] // 32)
    assert prepared("steps=200", "lr.horizon=400", "averagers.swa.start=75%").config.averagers[-1].start == 300


def test_a_decay_in_samples_is_as_many_at_the_end():
    asked = ["lr=wsd", "lr.warmup_steps=0", "lr.decay_steps=200samples"]
    assert prepared(*asked, "batch.size=16", "steps=50").config.lr.decay_steps == 13
    rising = ["batch=steps", "batch.size=4", "batch.sizes=[16]", "batch.at=[160]", "batch.unit=samples", "steps=80"]
    assert prepared(*asked, *rising).config.lr.decay_steps == 13  # 40 steps of 4, then of 16
    assert prepared(*asked, *rising, "lr.decay_steps=720samples").config.lr.decay_steps == 60  # 640 and 80
    with pytest.raises(UserError, match=r"lr.decay_steps=\d+: with the warm-up of 0 steps it is longer"):
        prepared(*asked, *rising, "lr.decay_steps=900samples")


def test_a_percentage_is_of_what_the_schedule_counts():
    rising = ("batch=steps", "batch.size=4", "batch.sizes=[16]", "batch.at=[160]", "batch.unit=samples", "samples=960")
    asked = ["lr=wsd", "lr.warmup_steps=10%", "lr.decay_steps=50%", *rising]  # 40 steps of 4 samples, 50 of 16
    of_steps, of_samples = prepared(*asked).config.lr, prepared(*asked, "lr.unit=samples").config.lr
    assert (of_steps.warmup_steps, of_steps.decay_steps) == (9, 45)
    assert (of_samples.warmup_steps, of_samples.decay_steps) == (24, 30)  # 96 and 480 of 960 samples
    assert "warm-up to step 24 (96 samples), decay after step 60 (480 samples)" in plan_of(*asked, "lr.unit=samples")


def test_a_horizon_before_the_budgets_end_is_told():
    asked = ["lr=cosine_to_zero", "lr.warmup_steps=5", "steps=100"]
    assert any(
        "lr.horizon=50: the last 50 of the 100 steps" in w
        for w in warnings(prepared(*asked, "lr.horizon=50").planned(1))
    )
    assert not any("lr.horizon" in w for w in warnings(prepared(*asked).planned(1)))
    assert "warm-up to step 5 (80 samples); planned for 400 steps" in plan_of(*asked, "lr.horizon=400")
    assert "planned for" not in plan_of(*asked)


def test_snapshots_default_to_the_greatest_common_divisor_of_the_spacings():
    assert prepared("spacing=[20,50]").config.trajectory.every == 10
    assert prepared("avg=ema", "evaluate.every=40").config.trajectory.every == 40
    assert prepared("trajectory.every=7").config.trajectory.every == 7


SAME = [
    ["avg=none"],
    ["k=7", "spacing=10"],
    ["steps=2000"],
    ["evaluate.every=7"],
    ["save.every=9"],
    ["trainer.threads=1"],
    ["logger.every=3"],
    ["watch=noise_scale"],
    ["lr.horizon=5000"],  # which a constant rate does not use
    ["trainer.micro_batch=4"],
    ["lr.unit=tokens"],  # the same where the batch does not change
]
OTHER = [
    ["seed=1"],
    ["lr.peak=1e-3"],
    ["lr.warmup_steps=50"],
    ["lr=cosine"],
    ["batch.size=8"],
    ["batch=ramp"],
    ["scaling=linear"],
    ["feedback=lookahead"],
    ["optimizer=sgd"],
    ["model.layers=2"],
    ["optimizer.weight_decay=0"],
    ["trainer.dtype=bfloat16"],
    ["trainer.compile=true"],
    ["model.context=64"],
]


@pytest.mark.parametrize("changes", SAME, ids=" ".join)
def test_what_only_observes_is_the_same_trajectory(changes):
    assert prepared(*changes).trajectory == prepared().trajectory


@pytest.mark.parametrize("changes", OTHER, ids=" ".join)
def test_what_determines_the_weights_is_another_trajectory(changes):
    assert prepared(*changes).trajectory != prepared().trajectory


def test_threads_are_omp_num_threads_or_a_share_of_the_cores(monkeypatch):
    cores = machine.usable_cores()
    monkeypatch.setenv("OMP_NUM_THREADS", str(cores + 3))
    assert prepared("trainer.threads=null").config.trainer.threads == cores + 3
    assert prepared("trainer.threads=2").config.trainer.threads == 2
    shared = prepared("trainer.threads=null", ranks=Ranks(world=2, local_world=2))  # torchrun's own value
    assert shared.config.trainer.threads == max(1, cores // 2)
    assert f"{cores + 3} CPU thread(s) a rank" in plan_of("trainer.threads=null")
    for value, threads in (("", cores), (f"{cores + 2},2", cores + 2)):  # OpenMP: a list is of nested levels
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert prepared("trainer.threads=null").config.trainer.threads == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    with pytest.raises(UserError, match="OMP_NUM_THREADS=0: expected an integer of at least 1"):
        prepared("trainer.threads=null")


def test_a_cosines_horizon_counts_and_its_budget_does_not():
    base = prepared("lr=cosine", "steps=500")
    assert prepared("lr=cosine", "steps=600").trajectory != base.trajectory
    assert prepared("lr=cosine", "steps=400", "lr.horizon=500").trajectory == base.trajectory


def test_scaling_keeps_the_warmups_steps_or_its_samples():
    asked = ["scaling=sqrt", "scaling.base_batch=16", "batch.size=64", "lr.warmup_steps=40"]
    assert prepared(*asked).config.lr.warmup_steps == 40
    assert prepared(*asked, "scaling.warmup=samples").config.lr.warmup_steps == 10
    p = prepared(*asked, "scaling.warmup=samples")
    assert resolve(unresolved_from(config_to(p.config)), p.data, p.config.trainer) == p.config  # as a read-out does
    by_amount = [*asked[:3], "scaling.warmup=samples", "steps=200"]
    assert prepared(*by_amount, "lr.warmup_steps=2560samples").config.lr.warmup_steps == 40
    assert prepared(*by_amount, "lr.warmup_steps=20%").config.lr.warmup_steps == 40
    shown = plan_of(*asked)
    assert "0.006 at step 1,000" in shown  # twice gpt_tiny's 0.003


def test_a_run_name_has_no_equals_sign():
    name = prepared().run_dir.name
    assert name.startswith("gpt_tiny-pydocs-constant0.003-seed0-") and "=" not in name


def test_feedback_is_in_the_name_of_a_run(tmp_path):
    folder = prepared("feedback=lawa_restart", f"runs_root={tmp_path}").run_dir
    assert folder.parent == tmp_path and "=" not in folder.name
    assert folder.name.startswith("gpt_tiny-pydocs-constant0.003-lawa_restart-seed0-")


def test_the_batch_is_split_over_ranks_and_passes():
    config = prepared("batch.size=48").config
    assert split_batch(config, 48, 128, 1) == Split(48, 1)
    assert split_batch(config, 48, 128, 4) == Split(12, 1)
    assert split_batch(config, 48, 1024, 1) == Split(16, 3)  # 16,384 tokens a pass
    assert split_batch(config, 48, 99_999, 2) == Split(1, 24)
    with pytest.raises(UserError, match=r"batch\.size=48: expected a multiple of the 5 ranks"):
        split_batch(config, 48, 128, 5)


def test_entries_of_one_trajectory_merge_into_one_training():
    merged = merge([prepared("avg=lawa", "k=3"), prepared("avg=[lawa,ema]", "k=5", "spacing=20")]).config
    assert [a.id for a in merged.averagers] == ["lawa-k3-s50", "lawa-k5-s20", "ema-d0.99-e1"]
    assert merged.steps == 1000 and merged.trajectory.every == 10
    with pytest.raises(UserError, match=r"evaluate\.samples is 4 and 8"):
        merge([prepared("evaluate.samples=4"), prepared("evaluate.samples=8")])


def test_the_plan_names_what_can_never_be_defined():
    shown = plan_of("steps=200", "k=5", "spacing=50")
    assert "lawa-k5-s50 needs 5 snapshots, the budget of 200 steps gives 4" in shown
    for part in ("836,736 parameters", "2,048 tokens a step", "snapshots   every 50 steps: 4", "FLOPs", "fingerprint"):
        assert part in shown


def test_the_plan_names_what_a_schedule_never_gets_to_or_counts_twice():
    def warned(*arguments):
        return warnings(prepared("steps=100", "avg=none", "lr.warmup_steps=5", *arguments).planned(1))

    assert warned("lr=step", "lr.at=[50,100]") == ["lr.at: step 100 is beyond the budget of 100 steps"]
    assert warned("lr=step") == warned("lr=power") == warned("scaling=linear") == []
    assert warned("lr=power", "scaling=linear") == [
        "lr=power is proportional to the batch already: scaling=linear multiplies its rate once more"
    ]


def test_feedback_is_counted_and_said_where_it_never_happens():
    never = "never gets to it"
    assert never in plan_of("feedback=switch_ema", "feedback.every=1epoch", "steps=200")
    assert never in plan_of("feedback=lawa_restart", "feedback.every=100", "steps=200")  # k=5, spacing=50
    assert never not in plan_of("feedback=lawa_restart", "feedback.every=100", "steps=300")
    assert never not in plan_of("feedback=lookahead", "steps=5")
    with pytest.raises(UserError, match="feedback=lookahead: expected none with optimizer=schedule_free"):
        prepared("feedback=lookahead", "optimizer=schedule_free").check(1)
    alone, with_window = (states_of(*extra, "steps=300") for extra in ([], ["feedback=lawa_restart"]))
    assert with_window == pytest.approx(alone + 2 * 5 * 3.35, rel=0.02)  # two states, five snapshots of 3.35 MB


def states_of(*arguments):
    """The megabytes of the states, as the plan says."""
    line = next(line for line in plan_of(*arguments).splitlines() if line.startswith("states"))
    assert "MB" in line
    return float(line.partition("at most ")[2].split()[0])


README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.mark.parametrize("model", PAPERS_NAMES)
def test_a_papers_model_is_planned_without_its_data(model, tmp_path, monkeypatch, capsys):
    """Stated sizes in place of the data, and the true number of parameters beside the name, as in the README."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAWA_DATA", raising=False)
    assert main([f"model={model}", "plan=true"]) == 0
    printed = capsys.readouterr().out
    parameters, name = re.search(r"^model +([\d,]+) parameters \((.*)\), ", printed, re.MULTILINE).groups()
    assert name == PAPERS_NAMES[model] and "not here: planned with stated sizes, " in printed
    assert "\nmemory      of a rank: weights " in printed and "% of the FLOPs" in printed
    assert f"| `{model}` | {name} | {parameters} |" in README


def test_only_a_plan_does_without_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAWA_DATA", raising=False)
    for more in ([], ["plan=true", "dataset.path=nowhere"], ["plan=true", "dataset=tinyshakespeare"]):
        assert main(["model=gpt2_small", *more]) == 2
        assert "looked in" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_stated_sizes_count_as_the_data_does(tmp_path, monkeypatch):
    for split, size in (("train", 1234), ("val", 321)):
        np.zeros(size, np.uint16).tofile(tmp_path / f"{split}.bin")
    facts = {"tiny": {"train": 1234, "val": 321, "vocab_size": 7, "source": "here"}}
    facts["cifar100"] = {"train": 999, "test": 50, "channels": 3, "image_size": 32, "classes": 100, "source": "there"}
    monkeypatch.setattr(stated_sizes, "FACTS", tmp_path / "facts.yaml")
    stated_sizes.FACTS.write_text(yaml.safe_dump(facts))
    settings = TokensSettings("tiny", str(tmp_path), 7, "uint16")
    there, here = stated(settings, 16), settings.open(16)
    for name in ("sizes", "tokens_per_sample", "sample", "unit", "vocab_size", "classes"):
        assert getattr(there, name) == getattr(here, name), name
    labels = complete({split: (np.zeros(n), np.zeros(n)) for split, n in (("train", 999), ("test", 50))})[1]
    images = stated(Cifar100Settings("cifar100", True, 0.0, 0.0, 0, None), None)
    assert images.sizes == {split: len(found) for split, found in labels.items()}
    assert stated(TokensSettings("unheard_of", None, 7, "uint16"), 16) is None


@dataclass(frozen=True)
class TwoPasses(UpdateSettings):
    """A choice on a list that has something to say."""

    size: int = 1
    passes: ClassVar[float] = 1.0

    def check(self, planned):
        if planned.world > self.size:
            raise UserError(f"update=two: not on {planned.world} ranks")

    def lines(self, planned):
        yield f"update      two passes of {planned.config.batch.size} samples"

    def warnings(self, planned):
        yield "update=two: slow"


def test_choices_on_lists_say_what_they_cost_print_and_warn_of():
    plain = prepared("steps=100")
    p = replace(plain, config=replace(plain.config, update=(("two", TwoPasses()),)))
    shown = show_plan(p, Ranks()).splitlines()
    assert "update      two passes of 16 samples" in shown and "warning     update=two: slow" in shown
    costs = [tensors_and_cost(one)[1] for one in (plain, p)]
    assert costs[1].flops == 2 * costs[0].flops
    assert any(line.endswith(f"about {costs[1].flops:.2e} FLOPs in 2 passes over a sample") for line in shown)
    assert "passes over" not in show_plan(plain, Ranks())
    with pytest.raises(UserError, match="update=two: not on 2 ranks"):
        show_plan(p, Ranks(0, 2, 0, 2))


@pytest.mark.parametrize("more", [[], ["plan=true"], ["-m", "seed=0,1"], ["-m", "seed=0,1", "plan=true"]])
def test_what_cannot_be_trained_is_refused_before_anything_is_printed(more, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wrong = {
        ("feedback=lookahead", "optimizer=schedule_free"): "feedback=lookahead: expected none with optimizer=schedule_",
        ("watch=noise_scale", "trainer.micro_batch=16"): "watch=noise_scale: a batch of 16 is one micro-batch",
    }
    for choices, said in wrong.items():
        assert main([*more, *choices]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and f"error: {said}" in printed.err
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"multirun.yaml"}  # Hydra's own
