"""Injected faults: which steps they strike and with what, that they are part of the run, and through kills."""

import itertools
import math
import signal
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import UPDATE, Strike, assert_same_run, rows, run, states, tiny
from PIL import Image

from lawa_exp.axes.dataset.blocks import Blocks
from lawa_exp.axes.dataset.digits import DigitsSettings
from lawa_exp.axes.dataset.fairseq import PAD, Lines
from lawa_exp.axes.dataset.image_folder import ImageFolderSettings
from lawa_exp.axes.dataset.images import smoothed
from lawa_exp.axes.dataset.loading import train_batches
from lawa_exp.axes.dataset.masked import IGNORE, MaskedBlocks
from lawa_exp.axes.dataset.order import in_epochs
from lawa_exp.axes.fault.batches import BadBatches
from lawa_exp.axes.fault.none import NoFault
from lawa_exp.axes.fault.rate import RateBurst
from lawa_exp.axes.lr.rates import Rates
from lawa_exp.launch.compose import compose, read
from lawa_exp.parallel.sharing import batches_of
from lawa_exp.runs.choices import config_to, unresolved_from
from lawa_exp.runs.identity import identity_of, trajectory_id
from lawa_exp.runs.plan import warnings
from lawa_exp.runs.prepare import prepare
from lawa_exp.runs.resolve import resolve
from lawa_exp.runs.sweep import stable_runs
from lawa_exp.seams.batches import Batches
from lawa_exp.seams.sampler import Sampler
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
on_each_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NO_GPU])])


def asked(*overrides):
    ((values, mine),), _ = compose(list(overrides))
    return read(values, mine)


def prepared(*overrides):
    return prepare(*asked(*overrides), torch.device("cpu"), Ranks())


def text():
    tokens = np.arange(5000) % 7
    return Blocks(dict.fromkeys(("train", "val", "test"), tokens), 16, 50, "", "x", "")


def digits(**changes):
    settings = {"flip": False, "crop_padding": 0, "mixup": 0.0, "label_smoothing": 0.0, **changes}
    return DigitsSettings(name="digits", **settings).open(None)


def numbered(first, count):
    """Samples number first .. first+count-1."""
    return in_epochs(first, count, 100, 0)


def rates(config, batches):
    """The rate of each step."""
    return Rates(config.lr, config.scaling, config.fault, batches).of


def masked():
    lines = Lines(np.full(20_000, 9), np.full(400, 50))
    ids = {f"s{n}": n for n in range(300)}
    return MaskedBlocks(dict.fromkeys(("train", "val", "test"), lines), ids, 128, "", "x", "")


@pytest.mark.parametrize(
    "data", [text, digits, lambda: digits(mixup=0.4), masked], ids=["text", "digits", "mix", "mlm"]
)
def test_noise_is_a_function_of_seed_and_sample(data):
    """So neither ranks nor micro-batches nor where a run was resumed change it; and it has a batch's form."""
    data = data()
    inputs, targets = data.noise_batch(7, numbered(90, 24))
    pieces = [data.noise_batch(7, numbered(90 + i, 3)) for i in range(0, 24, 3)]
    assert np.array_equal(np.concatenate([x for x, _ in pieces]), inputs)
    assert np.array_equal(np.concatenate([y for _, y in pieces]), targets)
    for other in (
        data.noise_batch(8, numbered(90, 24)),
        data.noise_batch(7, numbered(114, 24)),
        data.train_batch(7, numbered(90, 24)),
    ):
        assert not np.array_equal(other[0], inputs) and not np.array_equal(other[1], targets)
    clean = data.train_batch(7, numbered(90, 24))
    for noise, real in zip((inputs, targets), clean, strict=True):
        assert (noise.shape, noise.dtype) == (real.shape, real.dtype)


def even(drawn, kinds):
    """Chi-square of the counts of 0 .. kinds-1, in standard deviations."""
    counts = np.bincount(drawn.ravel(), minlength=kinds)
    assert len(counts) == kinds
    expected = drawn.size / kinds
    return abs(((counts - expected) ** 2 / expected).sum() - (kinds - 1)) / math.sqrt(2 * (kinds - 1))


def test_noise_of_text_is_uniform_over_the_vocabulary():
    inputs, targets = text().noise_batch(0, numbered(0, 2000))
    assert np.array_equal(inputs[:, 1:], targets[:, :-1])
    assert even(targets, 50) < 4 and even(inputs[:, 0], 50) < 4  # where the text itself has 7 tokens


def test_noise_of_images_is_uniform_over_their_range_and_their_classes():
    data = digits()
    inputs, classes = data.noise_batch(0, numbered(0, 2000))
    raw = inputs * data.std + data.mean
    low, high = (0, 255) if data.images["train"].dtype == np.uint8 else (0.0, float(data.images["train"].max()))
    assert even(np.clip((raw - low) / (high - low) * 20, 0, 19.99).astype(int), 20) < 4
    assert raw.min() > low - 1e-3 and raw.max() < high + 1e-3 and even(classes, 10) < 4
    smooth = digits(label_smoothing=0.1).noise_batch(0, numbered(0, 2000))
    assert np.array_equal(smooth[0], inputs) and np.array_equal(smooth[1], smoothed(classes, 10, 0.1))


def test_noise_of_a_masked_model_has_the_batchs_padding_and_as_many_targets():
    data = masked()
    (inputs, targets), (clean, masks) = data.noise_batch(0, numbered(5, 40)), data.train_batch(0, numbered(5, 40))
    assert np.array_equal(inputs == PAD, clean == PAD) and np.array_equal(targets == IGNORE, masks == IGNORE)
    assert (targets != IGNORE).sum() == data.train_targets(0, numbered(5, 40))
    for drawn in (inputs[inputs != PAD], targets[targets != IGNORE]):
        assert drawn.min() >= 4 and drawn.max() <= data.mask and len(np.unique(drawn)) > 200


class InOrder(Sampler):
    """Samples number 0, 1, 2, ..., of batches of these sizes."""

    def __init__(self, batches, size, seed):
        self.batches, self.size, self.seed = batches, size, seed

    def samples(self, step):
        return in_epochs(self.batches.samples(step - 1), self.batches.size(step), self.size, self.seed)


def test_steps_at_plus_1_to_at_plus_length_are_struck():
    """Where the batch grows in between, too: 10 steps of 4 samples, then of 8."""
    batches = Batches([(0, 4), (40, 8)], 16)
    inner = InOrder(batches, 50, 3)
    drawn = BadBatches(8, 5).sampler(inner)
    struck = []
    for step in range(1, 20):
        samples, plain = drawn.samples(step), inner.samples(step)
        assert np.array_equal(samples.numbers, plain.numbers) and np.array_equal(samples.indices, plain.indices)
        struck += [step] * samples.noise
    rate = RateBurst(8, 5, 3.0)
    assert struck == [t for t in range(20) if rate.rate_factor(t) == 3.0] == [9, 10, 11, 12, 13]
    assert {rate.rate_factor(t) for t in range(20)} == {1.0, 3.0}
    assert rate.sampler(inner) is inner and BadBatches(8, 5).rate_factor(9) == 1.0


@pytest.fixture
def folder(tmp_path):
    """Twelve images in files, of two classes."""
    for split, name in itertools.product(("train", "val"), ("cat", "dog")):
        (tmp_path / split / name).mkdir(parents=True)
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / split / name / f"{number}.png")
    plain = {"flip": True, "mixup": 0.0, "label_smoothing": 0.0, "image_size": 8, "resize": 9, "smallest_crop": 0.3}
    return lambda **changes: ImageFolderSettings(
        name="imagenet", path=str(tmp_path), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), **{**plain, **changes}
    ).open(None)


@on_each_device
@pytest.mark.parametrize("name", ["text", "digits", "mix", "mlm", "files", "mixed files", "decoded files"])
def test_beside_the_noise_nothing_changes(name, folder, device):
    """Neither the batches nor how they get to the device: in parts, read ahead, decoded by other processes."""
    data = {
        "text": text,
        "digits": digits,
        "mix": lambda: digits(mixup=0.4),
        "mlm": masked,
        "files": folder,
        "mixed files": lambda: folder(mixup=0.4),
        "decoded files": folder,
    }[name]()
    if name == "decoded files":
        data.workers = 1
    inner = InOrder(Batches([(0, 2)], 1), data.sizes["train"], 5)
    drawn = BadBatches(4, 4).sampler(inner)
    requests = [[sampler.samples(step) for step in range(1, 13)] for sampler in (inner, drawn)]
    plain, coming = (train_batches(data, 5, iter(samples), torch.device(device)) for samples in requests)
    reading = set()
    for step, samples, clean, found in zip(range(1, 13), requests[0], plain, coming, strict=True):
        reading |= {t.name.partition("_")[0] for t in threading.enumerate()}
        noise = tuple(torch.from_numpy(a).to(device) for a in data.noise_batch(5, samples))
        expected, other = (noise, clean) if 4 < step <= 8 else (clean, noise)
        assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert not torch.equal(found[0], other[0])
    assert ("reading" in reading) == (name == "decoded files" or (device == "cuda" and data.in_parts))


def test_a_fault_multiplies_what_schedule_scaling_and_warm_up_give():
    shape = ("lr=cosine", "lr.warmup_steps=20", "scaling=sqrt", "scaling.base_batch=4", "steps=100")
    plain, hit = prepared(*shape), prepared(*shape, "fault=rate", "fault.at=15", "fault.length=10%", "fault.factor=0.5")
    batches = batches_of(plain.config, plain.data)
    for step in range(1, 101):
        factor = 0.5 if 15 < step <= 25 else 1
        assert rates(hit.config, batches)(step) == factor * rates(plain.config, batches)(step)


def test_a_fault_is_part_of_the_trajectory_and_its_absence_is_not():
    plain = prepared()
    assert "fault" not in plain.identity and "bad_" not in plain.run_dir.name
    assert config_to(plain.config)["fault"] == {"kind": "none"}
    ids = {plain.trajectory}
    for at in (7, 5000):  # the second beyond the budget, which another command may raise
        for fault in (BadBatches(at, 10), RateBurst(at, 10, 10.0), RateBurst(at, 10, 2.0), RateBurst(at, 3, 10.0)):
            ids.add(trajectory_id(identity_of(replace(plain.config, fault=fault), plain.data)))
    assert len(ids) == 9
    p = prepared("fault=rate", "fault.at=50%", "fault.length=1%")
    assert p.config.fault == RateBurst(500, 10, 10.0)
    assert resolve(unresolved_from(config_to(p.config)), p.data, p.config.trainer) == p.config
    assert p.run_dir.name.startswith("gpt_tiny-pydocs-constant0.003-bad_rate-seed0-")
    assert p.trajectory == trajectory_id(identity_of(replace(plain.config, fault=p.config.fault), plain.data))
    warned = {
        at: warnings(replace(plain, config=replace(plain.config, fault=BadBatches(at, 10))).planned(1))
        for at in (990, 995)
    }
    assert warned == {
        990: [],
        995: ["fault.at=995: it lasts until step 1,005, beyond the budget of 1,000 steps"],
    }


def test_a_bad_value_is_one_line():
    plain = prepared()
    cases = {
        ("length", 0): "fault.length=0: expected a number of steps of at least 1",
        ("length", "0%"): "fault.length=0% is 0 steps: expected at least 1",
        ("at", -1): "fault.at=-1: expected a number of steps of at least 0",
        ("at", None): "fault.at=None: expected a number of steps",
        ("factor", 0): "fault.factor=0: expected a number, above 0",
        ("factor", math.inf): "fault.factor=inf: expected a number, above 0",
        ("kind", "burst"): "fault.kind=burst: choices: batches, custom, none, rate",
    }
    for (key, value), said in cases.items():
        fault = {"kind": "rate", "at": 5, "length": 5, "factor": 2.0, key: value}
        with pytest.raises(UserError) as error:
            unresolved = unresolved_from({**config_to(plain.config), "fault": fault})
            resolve(unresolved, plain.data, plain.config.trainer)
        assert str(error.value).startswith(said) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["batches", "rate"])
def test_a_run_killed_within_a_fault_ends_with_the_same_bytes(kind, tmp_path):
    faulty = tiny(f"fault={kind}", "fault.at=25", "fault.length=10", "logger.every=1")
    done = run(*faulty, f"run_dir={tmp_path / 'twin'}", warm=True)
    assert done.returncode == 0 and "in steps 26 to 35" in done.stdout, done.stdout + done.stderr
    died = run(*faulty, f"run_dir={tmp_path / 'run'}", strike=Strike(UPDATE, n=33))
    assert died.returncode == -signal.SIGKILL and states(tmp_path / "run")[-1] == 30, died.stdout + died.stderr
    done = run(*faulty, f"run_dir={tmp_path / 'run'}", warm=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_run(tmp_path / "run", tmp_path / "twin")
    others = {"clean": tiny("logger.every=1"), "split": [*faulty, "trainer.micro_batch=2"]}
    for name, overrides in others.items():
        done = run(*overrides, f"run_dir={tmp_path / name}", warm=True)
        assert done.returncode == 0, done.stdout + done.stderr
    bad, clean, split = (
        {r["step"]: r for r in rows(tmp_path / name) if r["split"] == "train"} for name in ("twin", "clean", "split")
    )
    assert [bad[t] for t in range(1, 26)] == [clean[t] for t in range(1, 26)]
    assert all(bad[t]["loss"] != clean[t]["loss"] for t in range(27, 61))
    assert [bad[t]["loss"] for t in range(1, 37)] == pytest.approx([split[t]["loss"] for t in range(1, 37)], rel=1e-4)
    assert [t for t in bad if bad[t]["lr"] != clean[t]["lr"]] == ([*range(26, 36)] if kind == "rate" else [])
    if kind == "rate":
        assert bad[26]["loss"] == clean[26]["loss"] and bad[26]["lr"] == 10 * clean[26]["lr"]
    else:  # of bytes that nobody can predict
        assert [t for t in bad if t > 5 and bad[t]["loss"] > 0.99 * math.log(256)] == [*range(26, 36)]


def test_a_cool_down_from_the_stable_run_has_its_fault(tmp_path):
    shape = ("lr=wsd", "lr.warmup_steps=0", "lr.decay_steps=20", "steps=100", f"runs_root={tmp_path}")
    stable = ("init.from=stable", *shape)
    for at, length in ((50, 10), (85, 5)):  # before the branch point, and in the decay
        fault = ("fault=rate", f"fault.at={at}%", f"fault.length={length}")
        ((source, _, _),) = stable_runs([asked(*fault, *stable)], [[]], torch.device("cpu"), Ranks())
        assert source.config.fault == RateBurst(at, length, 10.0) and source.config.steps == 80
        branch = prepare(*asked(*fault, *stable), torch.device("cpu"), Ranks(), source)
        whole = prepared(*fault, *shape)
        batches = batches_of(whole.config, whole.data)
        for p, steps in ((source, range(1, 81)), (branch, range(81, 101))):
            of_run = [rates(p.config, batches)(t) for t in steps]
            assert of_run == [rates(whole.config, batches)(t) for t in steps]


def test_a_fault_in_steps_that_are_the_sources_is_refused(tmp_path):
    folder = tmp_path / "source"
    made = run(*tiny("steps=20", "save.keep=[12]"), f"run_dir={folder}", warm=True)
    assert made.returncode == 0, made.stderr
    branch = tiny(f"init.from={folder}", "init.step=12", f"runs_root={tmp_path}")
    later = prepared(*branch, "fault=batches", "fault.at=12")
    assert later.config.fault == BadBatches(12, 10) and later.trajectory != prepared(*branch).trajectory
    with pytest.raises(UserError, match=r"fault.at=11: the steps up to init.step=12 are the source's"):
        prepared(*branch, "fault=batches", "fault.at=11")
    prepared(*branch, "fault=batches", "fault.at=11", "init.optimizer=reset")  # begins at step 0
    struck = replace(later.config, fault=NoFault())
    assert struck == prepared(*branch).config
