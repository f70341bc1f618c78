"""`python -m lawa_exp.export`: live or averaged weights for Hugging Face, nanoGPT or fairseq."""

from __future__ import annotations

import glob
import json
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.model.adaptive_lm.settings import AdaptiveLMSettings
from lawa_exp.axes.model.auto import AutoSettings
from lawa_exp.axes.model.custom import CustomSettings
from lawa_exp.axes.model.gpt.settings import GPTSettings
from lawa_exp.axes.model.pythia.settings import PythiaSettings
from lawa_exp.axes.model.roberta.settings import RobertaSettings
from lawa_exp.config.rules import build
from lawa_exp.convert.card import Card, card_of, model_card
from lawa_exp.formats.names import step_in
from lawa_exp.formats.stored import ABOUT
from lawa_exp.storage.commit import Damaged, commit, step_name, steps_in, verify
from lawa_exp.storage.rundir import RunDir
from lawa_exp.system.cli import Parser, add_trust, exit_code, plain_name
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import check_output, clear, sync, temporary

if TYPE_CHECKING:
    from torch import Tensor


FORMATS = ("huggingface", "nanogpt", "fairseq")
SUFFIXES = (".pt", ".pth", ".ckpt", ".bin")  # of files of PyTorch


@dataclass(frozen=True)
class Source:
    """A model's tensors under our names, and what else is known of them; data: the folder that it was trained on."""

    tensors: Mapping[str, Tensor]
    model: Any
    step: int
    tokenizer: str | None = None  # gpt2, neox or bytes
    tokenizer_path: str | None = None
    data: str | None = None
    note: str = ""  # what the written weights compute otherwise
    card: Card | None = None


def main(arguments: list[str]) -> int:
    """The whole command; returns its exit code."""
    args = parser().parse_args(arguments)

    def command() -> int:
        print(
            export(Path(args.source), args.to, Path(args.out), args.weights, args.step, args.tokenizer_path, args.trust)
        )
        return 0

    return exit_code(command)


def parser() -> Parser:
    p = Parser(
        prog="python -m lawa_exp.export",
        description="Writes weights for others to open: of a GPT a Hugging Face folder (AutoModelForCausalLM; with the "
        "tokenizer, so that a text-generation pipeline opens it, and init.from=DIR) or nanoGPT's ckpt.pt; of a RoBERTa "
        "a Hugging Face folder or a checkpoint of fairseq's; of transformer_lm_wiki103 a checkpoint of fairseq's; of a "
        "Pythia a Hugging Face folder; of model=custom one where its builder gives a model of transformers.",
    )
    p.add_argument(
        "source",
        metavar="RUN_OR_CHECKPOINT",
        help="a run, a snapshot or average in it, nanoGPT's ckpt.pt, a checkpoint of fairseq's, a folder of "
        "transformers' GPT-2, or what average has made of these",
    )
    p.add_argument("--to", choices=FORMATS, required=True)
    p.add_argument("--out", metavar="DIR", required=True, help="a folder, for fairseq a file, that is not there yet")
    p.add_argument("--weights", default="live", help="of a run: live (default), or an average's id")
    p.add_argument("--step", type=int, help="of a run; default: the last there is")
    p.add_argument("--tokenizer-path", metavar="DIR", help="of the tokenizer's files; default: as in training")
    add_trust(p)
    return p


def export(
    path: Path,
    to: str,
    out: Path,
    weights: str = "live",
    step: int | None = None,
    tokenizer_path: str | None = None,
    trust: bool = False,
) -> str:
    """Writes `out`; returns a line that says what it holds. UserError: it cannot be had, or `out` is there."""
    if out.exists() or out.is_symlink():
        raise UserError(f"--out {out}: is there already; choose a new folder")
    check_output("--out", out)
    if tokenizer_path and to != "huggingface":
        raise UserError("--tokenizer-path is for --to huggingface")
    if tokenizer_path and not Path(tokenizer_path).exists():
        raise UserError(f"--tokenizer-path={tokenizer_path}: no such file or folder")
    source = of_checkpoint(path) or of_run(path, weights, step, trust)
    writers = TARGETS.get(type(source.model), {})
    if to not in writers:
        there = f"expected {' or '.join(writers)}" if writers else "it is not exported"
        raise UserError(f"--to {to}: {path} has model={source.model.name}; {there}")
    said = writers[to](source, out, tokenizer_path)
    return f"{said}. {source.note}" if source.note else said


def to_nanogpt(source: Source, out: Path, tokenizer_path: str | None) -> str:
    """nanoGPT's sample.py decodes with GPT-2's BPE unless it finds os.path.join("data", dataset, "meta.pkl").

    For bytes that file is written here, and `dataset` is this folder's absolute path, which such a join keeps.
    """
    said = f"{out / 'ckpt.pt'}: step {source.step:,}, for nanoGPT's sample.py (out_dir={out})"
    files: dict[str, Callable[[Path], object]] = {}
    if source.tokenizer == "bytes":
        dataset: str | None = str(out.resolve())
        meta = pickle.dumps(bytes_as_characters(source.model.vocab_size))
        files["meta.pkl"] = lambda target: target.write_bytes(meta)
        said += (
            ". With meta.pkl next to ckpt.pt it reads and writes bytes, as characters of Latin-1; if the folder moves, "
            "set config['dataset'] in ckpt.pt to its new absolute path"
        )
    elif source.tokenizer == "gpt2":
        dataset = "openwebtext"
    else:
        dataset = source.data
        where = f": without a meta.pkl in data/{dataset}" if dataset else ", and without a meta.pkl of them"
        said += f". The tokens are those of {dataset or 'its data'}{where} sample.py takes them for GPT-2's"
    commit(out, {"ckpt.pt": lambda target: write_nanogpt(source, dataset, target), **files})
    return said


def bytes_as_characters(vocab_size: int) -> dict[str, Any]:
    """nanoGPT's meta.pkl for bytes, as Latin-1 has them; of a larger vocabulary the other tokens are nothing."""
    stoi = {chr(byte): byte for byte in range(256)}
    itos = {token: chr(token) if token < 256 else "" for token in range(vocab_size)}
    return {"vocab_size": vocab_size, "itos": itos, "stoi": stoi}


def gpt2_to_hugging_face(source: Source, out: Path, tokenizer_path: str | None) -> str:
    from lawa_exp.convert.hugging_face import to_hugging_face

    tensors, config = to_hugging_face(source.tensors, source.model)
    return write_generating(source, out, tensors, config, tokenizer_path)


def pythia_to_hugging_face(source: Source, out: Path, tokenizer_path: str | None) -> str:
    from lawa_exp.axes.model.pythia import pythia

    config = json.loads(pythia.config_of(source.model).to_json_string())
    return write_generating(source, out, source.tensors, config, tokenizer_path)


def custom_to_hugging_face(source: Source, out: Path, tokenizer_path: str | None) -> str:
    """UserError: the builder gives no model of transformers."""
    from lawa_exp.averaging.tensors import live_tensors, load_live

    model = source.model.build()
    if not callable(getattr(model, "save_pretrained", None)):
        raise UserError(
            f"--to huggingface: {source.model.named} gives {type(model).__name__}, no model of "
            "transformers; its weights are model.safetensors in the run, with the names of its state dict"
        )
    live = live_tensors(model)
    load_live(live, dict(source.tensors))
    architecture = type(model).__name__
    config = {**json.loads(model.config.to_json_string(use_diff=False)), "architectures": [architecture]}
    config.pop("_name_or_path", None)  # of somebody's own machine
    if model.can_generate():
        return write_generating(source, out, live, config, tokenizer_path)
    return write_hugging_face(source, out, live, config, {}, "")


def roberta_to_hugging_face(source: Source, out: Path, tokenizer_path: str | None) -> str:
    from lawa_exp.axes.model.roberta import roberta
    from lawa_exp.convert.tokenizers import carried_roberta

    config = json.loads(roberta.config_of(source.model).to_json_string())
    where, model = tokenizer_path or source.tokenizer_path, source.model
    tokenizer = carried_roberta(where, source.data, model.context, model.vocab_size)
    if tokenizer_path and not tokenizer:
        raise UserError(
            f"--tokenizer-path={tokenizer_path}: expected encoder.json, vocab.bpe and a dict.txt of "
            f"{model.vocab_size:,} symbols with <mask>"
        )
    named = "GPT-2's BPE with fairseq's numbers"
    return write_hugging_face(source, out, source.tensors, config, tokenizer.files if tokenizer else {}, named)


def write_generating(
    source: Source, out: Path, tensors: Mapping[str, Tensor], config: dict[str, object], tokenizer_path: str | None
) -> str:
    """`write_hugging_face` of a model that generates text: its tokenizer's tokens alone, up to its end of text."""
    from lawa_exp.convert.tokenizers import carried

    why = ""
    try:
        tokenizer = carried(source.tokenizer, tokenizer_path or source.tokenizer_path, source.model.context)
    except UserError as error:
        if tokenizer_path:
            raise
        tokenizer, why = None, f" ({error})"
    if tokenizer is None:
        return write_hugging_face(source, out, tensors, config, {}, "") + why
    ends = {"bos_token_id": tokenizer.end_of_text, "eos_token_id": tokenizer.end_of_text}
    beyond = list(range(tokenizer.vocab_size, source.model.vocab_size))
    generation = {**ends, **({"suppress_tokens": beyond} if beyond else {})}
    files = {**tokenizer.files, "generation_config.json": generation}
    return write_hugging_face(source, out, tensors, config | ends, files, str(source.tokenizer))


def write_hugging_face(
    source: Source,
    out: Path,
    tensors: Mapping[str, Tensor],
    config: dict[str, object],
    more: dict[str, object],
    tokenizer: str,
) -> str:
    """A folder that transformers opens: the weights, config.json, and `more`, which the tokenizer is among, if any."""
    from lawa_exp.storage.safetensors import write_tensors

    architectures = config["architectures"]
    assert isinstance(architectures, list)
    card = source.card or Card(source.model.name, source.data or "unknown data", source.step, "live")
    metadata = {ABOUT: json.dumps(card.average)} if card.average else {}
    files: dict[str, Callable[[Path], object]] = {
        "model.safetensors": lambda target: write_tensors(target, tensors, metadata),
        "README.md": lambda target: target.write_text(model_card(card, architectures[0])),
    }
    for name, content in {"config.json": config, **more}.items():
        files[name] = lambda target, content=content: target.write_text(json.dumps(content, ensure_ascii=False))  # type: ignore[misc]
    commit(out, files)
    with_tokenizer = f", tokenizer {tokenizer}" if more else ", without a tokenizer"
    return f"{out}: {architectures[0]} of step {source.step:,}{with_tokenizer}"


def of_run(path: Path, weights: str, step: int | None, trust: bool) -> Source:
    """A run's snapshot or average; `path` may be the folder of one. trust: the model's builder may run."""
    from lawa_exp.storage.safetensors import map_stored, stored

    folder = path if path.is_dir() and stored(path) else None
    found = next(
        (p for p in [path, *path.absolute().parents, *path.resolve().parents] if (p / "config.yaml").is_file()), None
    )
    if not path.exists():
        raise UserError(f"RUN_OR_CHECKPOINT={path}: there is no such file or folder")
    if found is None:
        raise UserError(f"RUN_OR_CHECKPOINT={path}: expected a run, a snapshot or average in one, or nanoGPT's ckpt.pt")
    run = RunDir(found)
    plain_name("--weights", weights)
    if folder is None and path.resolve() != found.resolve():
        raise UserError(
            f"RUN_OR_CHECKPOINT={path}: expected the run, {found}, or one of the folders {step_name(1000)} in its "
            "trajectory/ or averages/"
        )
    if folder is None:
        root = run.trajectory if weights == "live" else run.averages / weights
        there = steps_in(root)
        if not there:
            ids = ", ".join(["live", *run.average_ids])
            raise UserError(f"--weights {weights}: {found} has none; it has {ids}")
        step = max(there) if step is None else step
        if step not in there:
            raise UserError(f"--step {step}: {root} has {', '.join(map(str, there))}")
        folder = there[step]
    from lawa_exp.axes.dataset.tokenizers import tokenizer_of
    from lawa_exp.runs.choices import config_from

    written = run.read_config() or {}
    config = config_from(written)
    if config.model.builder:
        from lawa_exp.runs.builders import admit

        admit(config, written, run.path, trust, groups={"model"})
    step = step_in(folder.resolve().name)
    if step is None:
        raise UserError(f"RUN_OR_CHECKPOINT={path}: expected a snapshot's or average's own folder, {step_name(1000)}")
    try:
        verify(folder)
    except Damaged as error:
        raise UserError(f"RUN_OR_CHECKPOINT={path}: {error}") from None
    tokenizer, where = tokenizer_of(config.dataset)
    data = config.dataset.path
    return Source(
        map_stored(folder), config.model, step, tokenizer, where, data, card=card_of(run, folder, config, step)
    )


def of_checkpoint(path: Path) -> Source | None:
    """Others' checkpoints, which say of what model they are: nanoGPT's, fairseq's and transformers' GPT-2.

    None: a run, or what is in one. UserError: a PyTorch file that is something else.
    """
    from lawa_exp.axes.model.gpt.folder import activation_note, is_hugging_face
    from lawa_exp.convert.checkpoints import read_checkpoint
    from lawa_exp.convert.hugging_face import from_hugging_face
    from lawa_exp.convert.recorded import recorded

    if path.is_dir() and is_hugging_face(path):
        shape = {"name": path.resolve().name, "bias": True, "dropout": 0.0, "scale_attn_by_inverse_layer_idx": False}
        model = build(GPTSettings, {**shape, **recorded(path)}, "config.json")
        tensors, step = from_hugging_face(read_checkpoint(path), path, model), step_in(path.resolve().name) or 0
        return Source(tensors, model, step, note=activation_note(path))
    return of_file(path) if path.suffix in SUFFIXES else None


def of_file(path: Path) -> Source:
    """A checkpoint of fairseq's, which has its arguments and the model, or one of nanoGPT's."""
    from lawa_exp.convert import fairseq

    if path.is_file() and (content := fairseq.content_of(path)):
        tensors, model, data, step = fairseq.read_content(content, path)
        return Source(tensors, model, step, data=data)
    return of_nanogpt(path)


def of_nanogpt(path: Path) -> Source:
    """What nanoGPT's train.py saves. UserError: it is something else."""
    from lawa_exp.convert import nanogpt
    from lawa_exp.convert.checkpoints import read_checkpoint
    from lawa_exp.formats.pytorch import TorchFile

    if not path.is_file():
        raise UserError(f"RUN_OR_CHECKPOINT={path}: no such file")
    try:
        saved = TorchFile(path).content
        arguments = nanogpt.of_nanogpt(saved.get("model_args"))
        if not arguments:
            raise UserError("it has no model_args")
        model = build(GPTSettings, {"name": path.stem, **arguments}, "model_args")
        tensors = {n: t for n, t in read_checkpoint(path).items() if n != "lm_head.weight"}
        tensors = {n: t for n, t in tensors.items() if not n.endswith(".attn.bias")}
        step, config = saved.get("iter_num", 0), saved.get("config")
        data = config.get("dataset") if isinstance(config, Mapping) else None
    except UserError as error:
        raise UserError(f"RUN_OR_CHECKPOINT={path}: no checkpoint of nanoGPT or fairseq ({error})") from None
    tokenizer = "gpt2" if model.vocab_size in (50257, 50304) else None
    return Source(tensors, model, step if isinstance(step, int) else 0, tokenizer, data=data)


def write_nanogpt(source: Source, dataset: str | None, target: Path) -> None:
    """A file for nanoGPT's sample.py; its attention has no scale by layer, so the query weights have it."""
    import torch

    from lawa_exp.convert.hugging_face import scaled_queries
    from lawa_exp.convert.nanogpt import NANOGPT

    s = source.model
    tensors = dict(source.tensors)
    if s.scale_attn_by_inverse_layer_idx:
        tensors = scaled_queries(tensors, lambda layer: 1 / (layer + 1))
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    arguments = {theirs: getattr(s, ours) for ours, theirs in NANOGPT.items()}
    content = {"model": tensors, "model_args": arguments, "iter_num": source.step, "best_val_loss": float("inf")}
    torch.save(content | {"config": {"dataset": dataset} if dataset else {}}, target)


def to_fairseq(source: Source, out: Path, tokenizer_path: str | None) -> str:
    from lawa_exp.convert import fairseq

    out.parent.mkdir(parents=True, exist_ok=True)
    clear(out.parent, glob.escape(out.name))
    partial = temporary(out)
    fairseq.write(source.tensors, source.model, source.data, source.step, partial)
    sync(partial)
    partial.replace(out)
    sync(out.parent)
    return f"{out}: step {source.step:,}, for fairseq 0.12"


TARGETS: dict[type, dict[str, Callable[[Source, Path, str | None], str]]] = {
    GPTSettings: {"huggingface": gpt2_to_hugging_face, "nanogpt": to_nanogpt},
    PythiaSettings: {"huggingface": pythia_to_hugging_face},
    RobertaSettings: {"huggingface": roberta_to_hugging_face, "fairseq": to_fairseq},
    AdaptiveLMSettings: {"fairseq": to_fairseq},
    AutoSettings: {"huggingface": custom_to_hugging_face},
    CustomSettings: {"huggingface": custom_to_hugging_face},
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
