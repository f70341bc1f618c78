"""Real runs of fairseq on a small text: `python tests/fidelity/record_fairseq.py FAIRSEQ OUT [AVERAGE_CHECKPOINTS]`.

FAIRSEQ is its environment (launch/fairseq_env.sh), OUT a folder that does not exist, AVERAGE_CHECKPOINTS fairseq's
scripts/average_checkpoints.py, where it is not in the environment. The everyday tests read what it wrote into
tests/fidelity/recorded/fairseq; those marked fairseq run it anew. Checkpoints keep the paths that they were made with:
all of them are relative to OUT.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODEL = {"encoder-layers": 2, "encoder-embed-dim": 8, "encoder-ffn-embed-dim": 32, "encoder-attention-heads": 2}
CONTEXT = 48
ADAM = {"optimizer": "adam", "adam-betas": "(0.9,0.98)", "adam-eps": 1e-8, "weight-decay": 0.01, "clip-norm": 0}
MASKED = {"task": "masked_lm", "criterion": "masked_lm", "arch": "roberta_base", "sample-break-mode": "complete"}
MASKED |= {"tokens-per-sample": CONTEXT, "max-positions": CONTEXT, **MODEL}
ADAPTIVE = {"task": "language_modeling", "criterion": "adaptive_loss", "arch": "transformer_lm_wiki103"}
ADAPTIVE |= {"tokens-per-sample": CONTEXT, "decoder-layers": 2, "decoder-embed-dim": 16, "decoder-attention-heads": 2}
ADAPTIVE |= {"decoder-input-dim": 16, "decoder-output-dim": 16, "decoder-ffn-embed-dim": 64}
ADAPTIVE |= {"adaptive-input-cutoff": "40,100", "adaptive-softmax-cutoff": "40,100", "sample-break-mode": "none"}


def write_text(folder: Path) -> None:
    """Words of an invented language, each likely after the one before: something to learn, and nobody's property."""
    draw = random.Random(0)
    words = ["".join(draw.choice("bdfgklmnprstv") + draw.choice("aeiou") for _ in range(1 + n % 3)) for n in range(180)]
    following = {word: draw.sample(words[:60], 4) + draw.sample(words, 3) for word in words}
    folder.mkdir(parents=True)
    for split, lines in (("train", 260), ("valid", 60), ("test", 40)):
        with (folder / f"{split}.txt").open("w") as file:
            for number in range(lines):
                line = [draw.choice(words)]
                while draw.random() > 0.08:
                    line.append(draw.choice(following[line[-1]]))
                file.write(" ".join(line) + "\n" + "\n" * (number % 9 == 8))


def flags(settings: dict[str, object]) -> list[str]:
    return [
        part
        for name, value in settings.items()
        for part in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
    ]


class Fairseq:
    """The commands of an environment of fairseq's, on the CPU with one thread."""

    def __init__(self, environment: Path, average_checkpoints: Path | None = None) -> None:
        self.bin = environment.resolve() / "bin"
        self.average_checkpoints = (average_checkpoints or environment / "average_checkpoints.py").resolve()

    def __call__(self, *command: object) -> str:
        path, *rest = (str(part) for part in command)
        launch = [str(self.bin / path), *rest] if not path.endswith(".py") else [str(self.bin / "python"), path, *rest]
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(launch, capture_output=True, text=True, env=clean | {"OMP_NUM_THREADS": "1"}, timeout=500)
        # A thread of its data loader may abort the process when everything is done.
        fine = done.returncode == 0 or "done training in" in done.stdout + done.stderr
        assert fine, f"{' '.join(launch)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout + done.stderr

    def preprocess(self, text: Path, data: Path) -> None:
        pairs = {f"{split}pref": text / f"{split}.txt" for split in ("train", "valid", "test")}
        self("fairseq-preprocess", "--only-source", "--workers", 1, *flags({**pairs, "destdir": data}))

    def train(self, data: Path, save: Path, settings: dict[str, object]) -> str:
        shared = {"cpu": True, "seed": 1, "num-workers": 0, "no-save-optimizer-state": True, "log-format": "json"}
        shared |= {"save-dir": save, "log-interval": 1, "no-progress-bar": True, "disable-validation": True}
        shared |= {"skip-invalid-size-inputs-valid-test": True}
        return self("fairseq-train", data, *flags(shared | settings))

    def validate(self, data: Path, checkpoint: Path | str, settings: dict[str, object]) -> float:
        """The loss that it prints: in bits, to three places."""
        said = self(
            "fairseq-validate", data, "--path", checkpoint, "--cpu", "--batch-size", 8, "--log-format", "json",
            "--skip-invalid-size-inputs-valid-test", *flags({k: settings[k] for k in ("task", "criterion")}),
        )  # fmt: skip
        return float(re.findall(r'"valid_loss": "?([\d.]+)', said)[-1])

    def average(self, checkpoints: list[str], out: str) -> None:
        self(self.average_checkpoints, "--inputs", *checkpoints, "--output", out)


def record(fairseq: Fairseq, out: Path) -> None:
    """Makes the folder `out`."""
    out.mkdir(parents=True)
    with contextlib.chdir(out):
        record_here(fairseq)


def record_here(fairseq: Fairseq) -> None:
    text, data, work, worker = Path("text"), Path("data"), Path("work"), HERE / "in_fairseq.py"
    write_text(text)
    fairseq.preprocess(text, data)
    (data / "preprocess.log").unlink(missing_ok=True)
    start = {"max-update": 2, "batch-size": 8, "lr": 0.01, "lr-scheduler": "fixed", "no-epoch-checkpoints": True}
    fairseq.train(data, work / "start", {**MASKED, **ADAM, **start})
    shutil.copy(work / "start" / "checkpoint_last.pt", "start.pt")
    # Three updates of the whole training set each, without dropout: what comes of them does not depend on the order.
    # SGD, for Adam makes a whole step of the rounding of a gradient that is zero.
    again = {"restore-file": "start.pt", "max-update": 3, "batch-size": 500, "lr": 0.5, "lr-scheduler": "fixed"}
    again |= {"optimizer": "sgd", "momentum": 0.9, "weight-decay": 0, "clip-norm": 0}
    again |= {"required-batch-size-multiple": 1}
    again |= {f"reset-{what}": True for what in ("optimizer", "dataloader", "meters", "lr-scheduler")}
    again |= {"dropout": 0, "attention-dropout": 0, "no-last-checkpoints": True}
    said = fairseq.train(data, work / "full", {**MASKED, **again})
    for step in (1, 2, 3):
        shutil.copy(work / "full" / f"checkpoint{step}.pt", f"step_{step}.pt")
    if fairseq.average_checkpoints.is_file():
        fairseq.average([f"step_{step}.pt" for step in (1, 2, 3)], "average.pt")
    adaptive = {"max-update": 2, "batch-size": 8, "lr": 0.05, "lr-scheduler": "fixed", "optimizer": "nag"}
    adaptive |= {"clip-norm": 0.1, "no-epoch-checkpoints": True, "ddp-backend": "legacy_ddp"}
    fairseq.train(data, work / "adaptive", {**ADAPTIVE, **adaptive})
    shutil.copy(work / "adaptive" / "checkpoint_last.pt", "adaptive.pt")
    fairseq(worker, data, "step_3.npz", "step_3.pt")
    fairseq(worker, data, "adaptive.npz", "adaptive.pt")
    facts = {
        "valid_loss_bits": {
            name: fairseq.validate(data, f"{name}.pt", settings)
            for name, settings in (("start", MASKED), ("step_3", MASKED), ("adaptive", ADAPTIVE))
        },
        "train_loss_bits": [float(loss) for loss in re.findall(r'"train_loss": "([\d.]+)"', said)],
    }
    Path("facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    shutil.rmtree(work)


if __name__ == "__main__":
    environment, folder, *script = sys.argv[1:]
    record(Fairseq(Path(environment), Path(script[0]) if script else None), Path(folder))
