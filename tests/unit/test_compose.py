"""The command line: what composes, what each mistake is answered with, and that conf/ and the dataclasses agree."""

import dataclasses
import re
import shlex
import subprocess
import sys

import pytest
import torch
import yaml

import lawa_exp
from hydra_plugins import lawa_exp_launcher
from lawa_exp.averaging import AVERAGERS
from lawa_exp.axes.lr.constant import Constant
from lawa_exp.config.parts import NoAmounts
from lawa_exp.config.rules import Amount, rule_of
from lawa_exp.launch import compose
from lawa_exp.launch.compose import main
from lawa_exp.launch.conf import CONF
from lawa_exp.runs.choices import AT_ONCE, LISTS, SHARED, TABLES, config_from, config_to, unresolved_from
from lawa_exp.runs.prepare import prepare
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for variable in ("LAWA_DATA", "LAWA_TOKENIZER"):
        monkeypatch.delenv(variable, raising=False)


def composed(*arguments):
    ((values, overrides),), multirun = compose.compose(list(arguments))
    assert not multirun
    return compose.read(values, overrides)


def ids(config):
    """Of averagers that have no amounts."""
    return [a.resolved(NoAmounts()).id for a in config.averagers]


def kinds(config):
    return [a.cls.kind for a in config.averagers]


def refused(capsys, *arguments) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_the_command_of_the_card(capsys):
    config, _ = composed("model=gpt2_medium", "avg=lawa", "k=5", "spacing=1000")
    assert ids(config) == ["lawa-k5-s1000"]
    model = config.model
    assert (model.layers, model.heads, model.width, model.context, model.vocab_size) == (24, 16, 1024, 1024, 50304)
    assert model.scale_attn_by_inverse_layer_idx and not model.bias and config.lr.values["peak"] == 3e-3
    assert config.batch.size * model.context == 147_456 and config.budget == ("steps", 70_000)
    line = refused(capsys, "model=gpt2_medium", "avg=lawa", "k=5", "spacing=1000")
    for part in (
        "dataset=openwebtext",
        "train.bin",
        "looked in",
        "python -m lawa_exp.data prepare openwebtext",
        "dataset=pydocs",
    ):
        assert part in line


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["model=gpt3"], ["model=gpt3", "gpt_tiny", "gpt2_small"]),
        (["avg=lava"], ["avg=lava", "did you mean lawa"]),
        (["avg=[lawa,emma]"], ["avg=emma", "did you mean ema"]),
        (["lr=cosin"], ["lr=cosin", "did you mean cosine"]),
        (["experiment=wsd_horizon"], ["experiment=wsd_horizon", "did you mean wsd_horizons"]),
        (["modle=gpt_tiny"], ["modle", "did you mean model"]),
        (["lr.peek=1"], ["lr.peek", "did you mean peak"]),
        (["lr.final_ratio=0.1"], ["lr.final_ratio", "another choice"]),
        (["lr.peak=-1"], ["lr.peak=-1", "above 0"]),
        (["lr.peak=fast"], ["lr.peak=fast", "a number"]),
        (["k=0"], ["averagers.lawa.k=0", "at least 1"]),
        (["k=2.5"], ["averagers.lawa.k=2.5", "an integer"]),
        (["averagers.ema.decay=1.5"], ["averagers.ema.decay=1.5", "at most 1"]),
        (["batch.size=zero"], ["batch.size=zero", "an integer"]),
        (["steps=10", "epochs=1"], ["two budgets", "steps=10", "epochs=1"]),
        (["steps=0"], ["steps=0", "at least 1"]),
        (["save.every=often"], ["save.every=often", "1epoch"]),
        (["trainer.dtype=float8"], ["trainer.dtype=float8", "bfloat16"]),
        (["trainer.device=tpu"], ["trainer.device=tpu", "cpu"]),
        (["trainer.micro_batch=3"], ["trainer.micro_batch=3", "divisor of 16"]),
        (["k=3,5"], ["k=[3,5] is a list", "-m k=3,5 a training for each"]),
        (["lr=1e-3"], ["lr=1e-3", "the rate is lr.peak=1e-3", "cosine"]),
        (["batch=32"], ["the size is batch.size=32"]),
        (["learning_rate=1e-3"], ["did you mean lr.peak?"]),
        (["optimizer.lr=1e-3"], ["did you mean lr.peak?"]),
        (["batch_size=8"], ["did you mean batch.size?"]),
        (["ema.decay=0.9"], ["did you mean averagers.ema.decay?"]),
        (["adamw.beta1=0.9"], ["did you mean optimizer.beta1?"]),
        (["weight_decay=0"], ["did you mean optimizer.weight_decay?"]),
        (
            ["optimizer.nothing=1", "optimizer=sgd"],
            ["nothing", "choices: clip_norm, decays, momentum, nesterov"],
        ),
        (
            ["dataset=hf:owner/name"],
            ["hf download owner/name --repo-type dataset --local-dir DIR", "dataset=hf dataset.path=DIR"],
        ),
        (["dataset=mine/a.txt"], ["dataset=text dataset.path=mine/a.txt"]),
        (["dataset.path=a/epoch=3.txt"], ["dataset.path=a/epoch=3.txt", """write 'dataset.path="a/epoch=3.txt"'"""]),
        (["dataset.path=a(1).txt"], ["""write 'dataset.path="a(1).txt"'"""]),
        (["init.from=ä/#1"], ["""write 'init.from="ä/#1"'"""]),
        (["run_dir=it's=1"], ["run_dir=it's=1", "quotes"]),
        (["avg=[lawa,ema"], ["""write 'avg=["lawa", "ema"]'"""]),
        (["seed=range(1,"], ["seed=range(1,", "no viable alternative"]),
        (["seed=choice(1,2)"], ["seed=choice(1,2)", "need -m"]),
        (["-m", "lr.peak=interval(0,1)"], ["lr.peak=interval(0,1)", "an interval has no list of values"]),
        (["dataset=text", "dataset.path=${HOME}/x"], ["dataset.path=${HOME}/x", "${oc.env:NAME}"]),
        (["dataset=text", "dataset.path=${oc.env:NOT_SET_HERE}/x"], ["the environment has no variable NOT_SET_HERE"]),
        (["seed"], ["seed: expected KEY=VALUE"]),
        (["+seed=1"], ["+seed: it is a setting already"]),
        (["~averagers"], ["~averagers: a setting cannot be removed"]),
        (["--cfg"], ["--cfg: expected a value"]),
        (["--cfg", "jobs"], ["invalid choice: 'jobs'"]),
        (["--config-name=mine"], ["--config-name=mine: not a flag"]),
        (["model=custom"], ["model.builder is missing"]),
        (["model=custom", "model.builder=nowhere:f"], ["model.builder=nowhere:f", "package.module:function"]),
        (["model.width=130"], ["width=130", "heads=4"]),
        (["model.vocab_size=100"], ["model.vocab_size=100", "at least 256"]),
        (["model.context=100000"], ["model.context=", "expected at least 200000"]),
        (["dataset=text"], ["dataset=text", "dataset.path=PATH"]),
        (["dataset=text", "dataset.path=missing.txt"], ["looked in", "missing.txt"]),
        (["dataset=tinyshakespeare"], ["looked in", "LAWA_DATA is not set"]),
        (["lr=cosine", "steps=50"], ["lr.warmup_steps=100", "50 steps"]),
        (["recipe=fair"], ["recipe=fair", "gpt_tiny has none", "gpt2_small"]),
        (["recipe=fiar", "model=gpt2_small"], ["recipe=fiar", "did you mean fair", "as_published"]),
        (["+foo=1"], ["foo is not a setting"]),
        (["evaluate=5"], ["evaluate=5", "evaluate.KEY=VALUE"]),
        (["lr=null"], ["lr"]),
        (["averagers=5"], ["averagers=5"]),
        (["k=[]"], ["averagers.lawa.k=[]"]),
        (["avg=lawa", "averagers.ema.decay=0.9"], ["ema is not attached", "avg=[...]"]),
        (["averagers.ema.decai=0.9"], ["did you mean decay"]),
        (["seed=99999999999999999999"], ["seed="]),
        (["seed=-1"], ["seed=-1", "at least 0"]),
        (["steps=1e30"], ["steps="]),
        (["--steps", "100"], ["--steps", "key=value"]),
        (["--experimental-rerun", "config.pickle"], ["--experimental-rerun: not a flag"]),
        (["-m", "+run_dir=x"], ["run_dir"]),
        (["-m", "k=3,5", "run_dir=x"], ["run_dir", "runs_root"]),
        (["--jobs", "2"], ["sweep.jobs=2: only under -m"]),
        (["-m", "--jobs", "many", "seed=0,1"], ["--jobs many: expected a number"]),
        (["-m", "--jobs=0", "seed=0,1"], ["sweep.jobs=0", "at least 1"]),
        (["-m", "sweep.jobs=1.5", "seed=0,1"], ["sweep.jobs=1.5", "an integer"]),
        (["-m", "--jobs", "2", "hydra/launcher=slurm", "seed=0,1"], ["sweep.jobs=2", "hydra.launcher.parallel"]),
        (["sweep.value=live"], ["sweep.value=live: only under -m"]),
        (["hydra/launcher=basic"], ["hydra/launcher=basic: only under -m"]),
        (["-m", "hydra/launcher=basic", "plan=true"], ["plan=true: not with hydra/launcher=basic", "local"]),
        (["-m", "hydra/launcher=basic", "--jobs", "2"], ["sweep.jobs=2: not with hydra/launcher=basic"]),
        (["-m", "hydra.sweeper.max_batch_size=2", "seed=0,1"], ["max_batch_size=2: not used here", "sweep.jobs"]),
        (["-m", "hydra.mode=RUN", "seed=0,1"], ["hydra.mode=RUN", "not used here"]),
        (["hydra.sweeper.params.seed=[0,1]"], ["under -m a setting takes several values, KEY=A,B"]),
        (["hydra.output_subdir=null"], ["hydra.output_subdir=null", "provenance.jsonl"]),
        (["hydra.sweep.subdir=x"], ["hydra.sweep.subdir=x", "sweep=NAME"]),
        (["hydra/job_logging=default"], ["hydra/job_logging=default", "metrics.jsonl"]),
        (["hydra.verbose=true"], ["hydra.verbose=true"]),
        (["hydra.job.env_set.A=b"], ["hydra.job.env_set.A=b", "hydra.launcher.setup"]),
        (["hydra.job.name=x"], ["hydra.job.name=x", "run_dir=DIR"]),
        (["+hydra.callbacks.x._target_=os.getcwd"], ["hydra.callbacks.x._target_=os.getcwd", "update and watch"]),
        (["hydra.something=1"], ["hydra.something=1: not used here", "hydra.searchpath"]),
        (["hydra.searchpath=[file:///nowhere]"], ["hydra.searchpath: there is no folder /nowhere"]),
        (["-m", "seed=glob(*)"], ["seed=glob(*)", "nothing to train"]),
        (["-m", "k=3", "seed=range(5,5)"], ["seed=range(5,5)", "nothing to train"]),
        (["hydra.run.dir=elsewhere"], ["hydra.run.dir=elsewhere", "run_dir=DIR"]),
        (["-m", "hydra.sweep.dir=elsewhere", "seed=0,1"], ["hydra.sweep.dir=elsewhere", "sweep=NAME"]),
        (["hydra.job.chdir=true"], ["hydra.job.chdir=true"]),
        (["hydra/launcher=slurm"], ["hydra/launcher=slurm", "only under -m"]),
        (["-m", "hydra/launcher=joblip", "seed=0,1"], ["hydra/launcher=joblip", "local, slurm"]),
        (["-m", "hydra/sweeper=random", "seed=0,1"], ["hydra/sweeper=random", "basic"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_that_names_it(capsys, arguments, parts):
    line = refused(capsys, *arguments)
    for part in parts:
        assert part in line, line


@pytest.mark.parametrize(
    "file, content, arguments, parts",
    [
        (
            "experiment/other.yaml",
            "# @package _global_\ndefaults: [override /hydra/launcher: basic]",
            ["experiment=other"],
            ["hydra/launcher=basic: only under -m"],
        ),
        *(
            (
                "experiment/other.yaml",
                f"# @package _global_\nhydra: {{{content}}}",
                ["experiment=other"],
                [f"hydra.{key}", "not used"],
            )
            for key, content in {
                "run.dir": "run: {dir: elsewhere}",
                "output_subdir": "output_subdir: elsewhere",
                "job.env_set": "job: {env_set: {A: b}}",
                "verbose": "verbose: true",
                "job_logging.root={": "job_logging: {root: {level: DEBUG}}",
            }.items()
        ),
        *(
            (
                "experiment/other.yaml",
                f"# @package _global_\ndefaults:\n  - override /hydra/{group}: default",
                ["experiment=other"],
                [f"hydra/{group}=default: not used here; a training prints its rows"],
            )
            for group in ("job_logging", "hydra_logging")
        ),
    ],
    ids=[
        "launcher",
        "run",
        "output",
        "environment",
        "verbose",
        "root",
        "job_logging",
        "hydra_logging",
    ],
)
def test_what_hydra_composed_is_refused_wherever_it_stands(capsys, tmp_path, file, content, arguments, parts):
    (tmp_path / "mine" / file).parent.mkdir(parents=True)
    (tmp_path / "mine" / file).write_text(f"{content}\n")
    line = refused(capsys, *arguments, "--config-dir", "mine", "runs_root=elsewhere", "seed=0")
    assert all(part in line for part in parts), line
    assert not (tmp_path / "elsewhere").exists()  # nothing ran, of Hydra's neither


def test_settings_of_an_averager_without_its_choice_are_said(capsys, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\n{}averagers:\n  ema:\n    decay: 0.99"
    (tmp_path / "mine" / "experiment" / "of_its_own.yaml").write_text(text.format("defaults: [override /avg: lawa]\n"))
    (tmp_path / "mine" / "experiment" / "both.yaml").write_text(text.format(""))
    said = "averagers.ema.decay: ema is not attached; add it to avg=[...]"
    assert said in refused(capsys, "experiment=of_its_own", "--config-dir", "mine")
    assert said in refused(capsys, "+averagers.ema.decay=0.99", "avg=lawa")
    note = "note: averagers.ema of the experiment has no effect: avg=... does not attach ema\n"
    for avg, expected in (("lawa", note), ("[lawa,ema]", "")):
        assert main(["experiment=both", f"avg={avg}", "--config-dir", "mine", "plan=true"]) == 0
        assert capsys.readouterr().err == expected


def test_an_experiment_can_choose_the_launcher(capsys, tmp_path):
    """Hydra passes over an override in a file that the primary configuration's come before."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "ours.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /hydra/launcher: slurm\nhydra:\n  launcher: {partition: ours}"
    )
    line = refused(capsys, "experiment=ours", "--config-dir", "mine")
    assert "hydra/launcher=slurm: only under -m" in line
    assert compose.compose(["-m", "experiment=ours", "--config-dir", "mine"])[1]
    assert lawa_exp_launcher.CLUSTER.pop("partition") == "ours"
    lawa_exp_launcher.CLUSTER.clear()


def test_a_suggested_word_is_read_as_it_was_meant():
    for value in ("a/epoch=3.txt", "a(1) b.txt", "{x}", "~/ä", 'a"b=1'):
        word = f"dataset.path={value}"
        with pytest.raises(UserError) as refusal:
            compose.compose(["dataset=text", word])
        suggested = shlex.split(str(refusal.value).partition("; write ")[2])
        assert compose.compose(["dataset=text", *suggested])[0][0][0]["dataset"]["path"] == value


def test_the_version_is_ours(capsys):
    assert compose.main(["--version"]) == 0 and capsys.readouterr().out == f"lawa_exp {lawa_exp.__version__}\n"


def test_the_launcher_of_another_plugin_is_refused_where_nothing_trains(tmp_path):
    with pytest.raises(UserError, match="hydra/launcher=basic: not in this command; expected one of local, slurm"):
        compose.compose(["-m", "hydra/launcher=basic", "seed=0,1"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["hydra.mode=MULTIRUN", "seed=0,1"], ["experiment=several", "--config-dir", "mine"]])
def test_a_multirun_is_asked_for_by_its_mode(tmp_path, words):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "several.yaml").write_text(
        "# @package _global_\nhydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 0,1\n"
    )
    for more in ([], ["hydra.launcher._target_=hydra_plugins.lawa_exp_launcher.Collect"]):  # Hydra looks in two ways
        entries, multirun = compose.compose([*words, *more])
        assert multirun and [values["seed"] for values, _ in entries] == [0, 1]


def test_the_name_of_a_multirun_has_a_short_form():
    for word in ("sweep=mine", "sweep.name=mine"):
        entries, _ = compose.compose(["-m", word, "seed=0", "sweep.value=ema", "--jobs", "2"])
        _, options = compose.read(*entries[0])
        assert (options.sweep.name, options.sweep.value, options.sweep.jobs) == ("mine", "ema", 2)
        assert entries[0][1] == ["seed=0"]  # what an entry asks for


@pytest.mark.parametrize("arguments", [["seed=0,1", "-m", "k=3"], ["seed=0,1", "k=3", "-m"]])
def test_flags_stand_anywhere(arguments):
    entries, multirun = compose.compose(arguments)
    assert multirun and [values["seed"] for values, _ in entries] == [0, 1]


def test_a_text_that_is_too_short_or_not_utf8(capsys, tmp_path):
    (tmp_path / "short.txt").write_text("only a little")
    assert "its train split has" in refused(capsys, "dataset=text", "dataset.path=short.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe" * 5000)
    assert "not UTF-8" in refused(capsys, "dataset=text", "dataset.path=binary.txt")


def test_a_traceback_never_shows_for_a_mistake(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lawa_exp", "model=gpt3"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"]])
def test_help_and_cfg_do_not_import_torch(tmp_path, arguments):
    code = "import sys; from lawa_exp.launch.compose import main; assert main(sys.argv[1:]) == 0"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pydocs" in done.stdout


def test_the_budget_on_the_command_line_replaces_the_recipes():
    assert composed("tokens=1e6")[0].budget == ("tokens", 1_000_000)
    assert composed("epochs=0.5")[0].budget == ("epochs", 0.5)
    assert composed()[0].budget == ("steps", 1000)


def test_lists_attach_a_product_and_a_model_brings_its_recipe():
    found = ids(composed("k=[3,5]", "spacing=[50,100]", "avg=[lawa,ema]")[0])
    assert found[:4] == ["lawa-k3-s50", "lawa-k3-s100", "lawa-k5-s50", "lawa-k5-s100"] and len(found) == 5
    assert composed("avg=none")[0].averagers == ()
    assert composed("avg=none", "experiment=mini_mlm")[0].averagers == ()  # whose file sets others
    assert kinds(composed("avg=lawa", "experiment=mini_mlm")[0]) == ["lawa"] * 4
    config, _ = composed("lr=constant", "dataset=tokens", "model=gpt2_large")  # in any order
    assert config.lr.cls is Constant and config.lr.values["peak"] == 2e-3 and config.dataset.name == "tokens"


def test_the_two_recipes_of_gpt2():
    """As the published code ran, and fair: an annealed baseline and an EMA whose decay is chosen."""
    published, fair = composed("model=gpt2_small")[0], composed("model=gpt2_small", "recipe=fair")[0]
    assert (published.recipe, fair.recipe) == ("as_published", "fair")
    assert (published.lr.values["final_ratio"], fair.lr.values["final_ratio"]) == (0.1, 0.0)
    *others, swa = published.averagers
    assert ids(dataclasses.replace(published, averagers=others)) == ["lawa-k5-s400", "ema-d0.9-e1-warmup"]
    assert swa.cls.kind == "swa" and swa.values == {"every": 10, "start": Amount(75, "%", "75%")}
    assert kinds(fair).count("ema") > 1 and fair.batch == published.batch
    assert composed("recipe=fair", "model=gpt2_small", "lr=wsd", "avg=lawa")[0].lr.values["shape"] == "1-sqrt"
    assert composed("model=fair/gpt2_small", "recipe=as_published")[0].recipe == "as_published"
    for size, peak, tokens in (("small", 6e-3, 393_216), ("medium", 3e-3, 147_456), ("large", 2e-3, 49_152)):
        config = composed(f"model=gpt2_{size}")[0]
        assert config.lr.values["peak"] == peak and config.batch.size * config.model.context == tokens


def test_recipes_are_swept_like_any_setting():
    found = swept("model=gpt2_small,gpt2_large", "recipe=as_published,fair")
    assert [(c.model.name, c.recipe, c.lr.values["final_ratio"]) for c in found] == [
        ("gpt2_small", "as_published", 0.1),
        ("gpt2_small", "fair", 0.0),
        ("gpt2_large", "as_published", 0.005),
        ("gpt2_large", "fair", 0.0),
    ]


PYTHIAS = sorted(path.stem for path in (CONF / "model").glob("pythia_*.yaml"))
OTHERS = ["gpt2_large", "gpt2_medium", "gpt2_small", "resnet34", "resnet50", "roberta_base", "transformer_lm_wiki103"]


def test_the_models_that_have_a_fair_recipe():
    assert sorted(path.stem for path in (CONF / "model" / "fair").glob("*.yaml")) == sorted([*PYTHIAS, *OTHERS])


@pytest.mark.parametrize("model", [*PYTHIAS, *OTHERS])
def test_a_fair_recipe_is_the_published_one_but_for_the_schedule_and_the_averages(model):
    published, fair = composed(f"model={model}")[0], composed(f"model={model}", "recipe=fair")[0]
    assert (published.recipe, fair.recipe, fair.model.name) == ("as_published", "fair", model)
    for part in ("model", "dataset", "optimizer", "batch", "scaling", "budget", "seed"):
        assert getattr(fair, part) == getattr(published, part), part
    samples = fair.evaluate.values["bn_samples"]  # a whole pass for each of many averages would be too much
    assert fair.evaluate == published.evaluate.changed(bn_samples=samples)
    lr = fair.lr.values
    assert lr["final_ratio"] <= 1e-4 and lr["horizon"] is None  # annealed to (nearly) zero at the budget
    assert lr["peak"] == published.lr.values["peak"]
    assert set(kinds(fair)) == {"lawa", "ema", "swa"} and kinds(fair).count("ema") > 1


def swept(*arguments):
    lawa_exp_launcher.COMPOSED.clear()
    entries, multirun = compose.compose(["-m", *arguments])
    assert multirun
    return [compose.read(values, overrides)[0] for values, overrides in entries]


def test_the_axes_in_an_experiments_file_are_swept():
    assert [config.seed for config in swept("experiment=batch_doubling", "steps=300")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("experiment", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_the_commands_in_an_experiments_file_compose(experiment):
    """The first value of each axis. P, R, ... in them stand for what the runs of an earlier command give."""
    text = (CONF / "experiment" / f"{experiment}.yaml").read_text()
    axes = yaml.safe_load(text).get("hydra", {}).get("sweeper", {}).get("params", {})
    commands = [line for line in text.splitlines() if line.startswith("#   python -m lawa_exp -m ")]
    assert bool(commands) == bool(axes)  # the settings that experiments share have neither
    for command in commands:
        words = shlex.split(command.removeprefix("#   "))[4:]
        given = {word.split("=")[0] for word in words}
        words += [f"{axis}={values}" for axis, values in axes.items() if axis not in given]
        words = [re.sub(r"=4?[PRA]$", "=0.001", word).replace("=B", "=-0.5") for word in words]
        assert len(swept(*(word if "[" in word else word.split(",")[0] for word in words))) == 1


@pytest.mark.parametrize("model", ["gpt_tiny", "gpt2_small", "gpt2_medium", "gpt2_large"])
def test_every_model_composes_and_its_configuration_survives_a_file(model):
    config = prepare(*composed(f"model={model}", "plan=true"), torch.device("cpu"), Ranks()).config
    written = yaml.safe_load(yaml.safe_dump(config_to(config)))
    assert config_from(written) == config
    unresolved = unresolved_from(written)
    assert unresolved.budget == ("steps", config.steps) and unresolved.lr.resolved(NoAmounts()) == config.lr
    with pytest.raises(UserError, match=r"evaluate\.every=1epoch: expected"):
        config_from({**written, "evaluate": {**written["evaluate"], "every": "1epoch"}})


def test_every_choice_in_conf_has_exactly_the_settings_of_its_dataclass():
    tables = {name: {None: cls} for name, cls in SHARED.items()} | TABLES | {"logger": LISTS["loggers"]}
    for group in ("dataset", "optimizer", "lr", "batch", "scaling", "feedback", "trainer", "logger"):
        for path in (CONF / group).glob("*.yaml"):
            content = yaml.safe_load(path.read_text())
            if content is None:  # logger=jsonl, which every run writes
                continue
            for base in (b for b in content.pop("defaults", []) if b != "_self_"):
                content = yaml.safe_load((CONF / group / f"{base}.yaml").read_text()) | content
            table = tables[group]
            cls = table[None] if None in table else table[content.pop("kind")]
            assert set(content) == {f.name for f in dataclasses.fields(cls)}, path


def test_where_a_choice_has_a_number_of_steps_the_command_takes_an_amount():
    classes = {name: [cls] for name, cls in SHARED.items()}
    classes |= {name: list(table.values()) for name, table in {**TABLES, "averagers": AVERAGERS}.items()}
    counts = {name for name, of in classes.items() for cls in of for f in dataclasses.fields(cls) if rule_of(f).written}
    assert {"lr", "averagers", "evaluate", "save"} <= counts and not counts & AT_ONCE


def test_composing_twice_in_a_process():
    """A multirun's entries are its own, not those of the one before."""
    for seeds in (["0", "1"], ["2", "3"]):
        entries, multirun = compose.compose(["-m", f"seed={','.join(seeds)}"])
        assert multirun and [values["seed"] for values, _ in entries] == [int(s) for s in seeds]


@pytest.mark.parametrize(
    "words",
    [
        [
            "lr=cosine,wsd",
            "lr.peak=1e-3,2e-3",
            "k=[3],[5,10]",
            "averagers.ema.decay=[half_life:4%,0.9]",
            "avg=[lawa,ema]",
        ],
        ["experiment=mini_lm", "steps=500,2epochs", "runs_root='a b',c", "seed=0,1"],
        ["lr.horizon=75%,${steps}", "steps=40", "init.from=null,/x", "+watch.mine={kind: noise_scale}", "seed=0"],
    ],
)
def test_an_entry_of_a_multirun_is_composed_as_it_is_alone(words):
    """Entries that differ in values alone are copies of the first, see launch/alike.py."""
    entries, multirun = compose.compose(["-m", *words])
    assert multirun and len(entries) > 1
    for values, overrides in entries:
        ((alone, _),), _ = compose.compose(overrides)
        assert {**values, "sweep": None} == {**alone, "sweep": None}, overrides
