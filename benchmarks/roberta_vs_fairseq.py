"""A whole training step of RoBERTa-base against fairseq's: batch, forward, backward, update.

Ours is the training loop itself (benchmarks/loop.py). Theirs is fairseq's own `Trainer`, in its environment and so in a
process of its own (benchmarks/fairseq_worker.py), which stands still while ours works, and ours while it does. Same
model, batch, dtype (float32), threads, data (what `fairseq-preprocess` makes of --text), masks and settings of Adam.
The text is cut into lines that fill a block each: every step is the same work. Each side runs on the torch that it
needs: fairseq's is 2.2.

    make fairseq-env
    python benchmarks/roberta_vs_fairseq.py --text data/wikitext-2 --out results/speed/roberta_vs_fairseq.md
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import loop
from pairs import HEADER, Pairs, machine, publish, row, table

from lawa_exp.axes.dataset.text import read_splits
from lawa_exp.axes.dataset.tokenizers import find_gpt2, load_tokenizer


def main() -> None:
    load = os.getloadavg()[0]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fairseq", type=Path, default=Path(".fairseq"), metavar="DIR", help="fairseq's environment")
    parser.add_argument("--text", type=Path, required=True, metavar="DIR", help="train.txt, valid.txt and test.txt")
    parser.add_argument("--batch", type=int, default=4, help="blocks in a step")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--within", type=float, default=0.01, help="half-width of the 95%% interval to reach")
    parser.add_argument("--seconds", type=float, default=600, help="stop after so long all the same")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: the cores")
    parser.add_argument("--out", type=Path, help="file for the table")
    options = parser.parse_args()
    bin = options.fairseq.resolve() / "bin"
    if not (bin / "fairseq-preprocess").is_file():
        parser.error(f"no fairseq in {options.fairseq}: make fairseq-env")

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data(bin, options.text, folder, options.context)
        overrides = [
            *(f"dataset.path={folder / 'data'}", f"batch.size={options.batch}", f"model.layers={options.layers}"),
            *(f"model.context={options.context}", f"trainer.threads={options.threads}", "trainer.dtype=float32"),
            f"trainer.micro_batch={options.batch}",
        ]
        p = loop.prepared("roberta_base", overrides, folder)
        theirs = Worker(bin, worker_arguments(p, folder / "data"), options.threads)
        pairs = Pairs(options.within, max_seconds=options.seconds)

        def after_step(seconds: float) -> bool:
            pairs.record(seconds)
            while pairs.turn == 1 and not pairs.done:
                pairs.record(theirs.step(options.batch))
            return pairs.done

        loop.watch(p, after_step)
        theirs.process.stdin.close()  # type: ignore[union-attr]
        theirs.process.wait(60)

    shape = f"{options.layers} layers, batch {options.batch} x {options.context}, float32, CPU"
    publish(
        "A training step of RoBERTa against fairseq's",
        [
            f"RoBERTa-base ({shape}). A is a step of `python -m lawa_exp`'s own loop with no averager attached; B is "
            "a step of fairseq 0.12.2's `Trainer`, its iterator in the same process.",
            table(HEADER, [row("step", "lawa_exp", "fairseq", pairs)]),
            machine(options.threads, load),
            f"fairseq's side says: {theirs.said}.",
        ],
        options.out,
    )


def write_data(bin: Path, text: Path, folder: Path, context: int) -> None:
    """`folder`/data: what `fairseq-preprocess` makes of the text through GPT-2's BPE, with RoBERTa's dictionary.

    In lines of `context` tokens, the beginning and the end of the block among them.
    """
    encode = load_tokenizer("gpt2", None).encode
    texts, _ = read_splits(text.resolve())
    prefixes = []
    for split, flag in (("train", "trainpref"), ("val", "validpref"), ("test", "testpref")):
        tokens, inner = encode(texts[split]).tolist(), context - 2
        lines = (" ".join(map(str, tokens[i : i + inner])) for i in range(0, len(tokens) - inner + 1, inner))
        (folder / f"{split}.bpe").write_text("\n".join(lines) + "\n")
        prefixes += [f"--{flag}", str(folder / f"{split}.bpe")]
    dictionary = str(find_gpt2(None) / "dict.txt")
    command = [str(bin / "fairseq-preprocess"), "--only-source", "--srcdict", dictionary, *prefixes]
    done = subprocess.run([*command, "--destdir", str(folder / "data")], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def worker_arguments(p: loop.Prepared, data: Path) -> list[str]:
    """`fairseq-train`'s for the model, the batch and the update of `p`."""
    m, o = p.config.model, p.config.optimizer
    settings = {
        "task": "masked_lm", "criterion": "masked_lm", "arch": "roberta_base", "sample-break-mode": "complete",
        "tokens-per-sample": m.context, "max-positions": m.context, "encoder-layers": m.layers,
        "dropout": m.dropout, "attention-dropout": m.attention_dropout, "batch-size": p.config.batch.size,
        "required-batch-size-multiple": 1, "num-workers": 0, "optimizer": "adam",
        "adam-betas": f"({o.beta1},{o.beta2})", "adam-eps": o.eps, "weight-decay": o.weight_decay, "clip-norm": 0,
        "lr": p.config.lr.peak, "lr-scheduler": "polynomial_decay", "warmup-updates": p.config.lr.warmup_steps,
        "total-num-update": p.config.lr.horizon, "save-dir": data.parent / "unused",
    }  # fmt: skip
    return [str(data), "--cpu", *(part for name, value in settings.items() for part in (f"--{name}", str(value)))]


class Worker:
    """fairseq's process: it works only while a step is asked for."""

    def __init__(self, bin: Path, arguments: list[str], threads: int) -> None:
        script = Path(__file__).parent / "fairseq_worker.py"
        clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.process = subprocess.Popen(
            [str(bin / "python"), str(script), str(threads), *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=clean | {"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        self.said = self._line("parameters")

    def step(self, blocks: int) -> float:
        """Its seconds of one step of so many blocks (a last batch of an epoch that is smaller is gone through)."""
        while True:
            self.process.stdin.write("step\n")  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]
            seconds, size = self._line("").split()
            if int(size) == blocks:
                return float(seconds)

    def _line(self, begins: str) -> str:
        for line in self.process.stdout:  # type: ignore[union-attr]
            if line.startswith(begins) and (begins or line[:1].isdigit()):
                return line.strip()
        sys.exit("fairseq's process ended: run benchmarks/fairseq_worker.py by hand to see why")


if __name__ == "__main__":
    main()
