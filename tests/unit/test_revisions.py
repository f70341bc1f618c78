"""Read-outs of revisions, of a model on a hub and of folders: GPT-NeoX checkpoints that our own trainer made."""

import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Strike, command, rows, run
from hub import Served, serving

pytest.importorskip("transformers")

from lawa_exp.axes.model.pythia.pythia import write_configuration
from lawa_exp.export import export
from lawa_exp.readout.__main__ import parser, request_of
from lawa_exp.readout.command import read
from lawa_exp.runs.choices import config_from
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.rundir import RunDir
from lawa_exp.storage.safetensors import read_tensors
from lawa_exp.system.cli import exit_code
from lawa_exp.system.files import locked

SHAPE = ["model.layers=1", "model.width=32", "model.heads=2", "model.context=32", "model.vocab_size=256"]
EVALUATED = ["evaluate.every=10", "evaluate.samples=16", "evaluate.batch_size=8", "trainer.threads=1"]
TRAINED = ["model=pythia_14m", "dataset=pydocs", *SHAPE, *EVALUATED, "batch.size=4", "steps=60", "lr.warmup_steps=5"]
AVERAGES = ["avg=[lawa,ema,swa]", "k=[2,3]", "spacing=10", "averagers.ema.every=10", "averagers.ema.decay=0.5"]
ASKED = ["--dataset", "pydocs", "--avg", "lawa,ema,swa", "--k", "2,3", "--spacing", "10", "--decay", "0.5", *EVALUATED]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run(*TRAINED, *AVERAGES, "averagers.swa.every=10", "averagers.swa.start=10", f"run_dir={folder}", warm=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def folders(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its snapshots as revisions: step10, ... step60, and main. Not to be changed."""
    root = tmp_path_factory.mktemp("folders") / "tiny"
    settings = config_from(RunDir(trained).read_config() or {}).model
    for step, path in steps_in(trained / "trajectory").items():
        write_configuration(root / f"step{step}", settings)
        shutil.copy(path / "model.safetensors", root / f"step{step}")
    return root


@pytest.fixture
def served(folders: Path, tmp_path: Path) -> Iterator[Served]:
    """A hub that has a copy of them, and a branch main."""
    root = shutil.copytree(folders, tmp_path / "served")
    shutil.copytree(root / "step60", root / "main")
    with serving(Served(root)) as model:
        yield model


def readout(served: Served | None, *arguments: Any) -> tuple[int, str, str]:
    """The command in this process, against that hub: its exit code, what it printed, its errors."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setenv("HF_ENDPOINT", served.url if served else "http://127.0.0.1:9")
        request = request_of(parser().parse_intermixed_args([str(a) for a in arguments]))
        code = exit_code(lambda: read(request))
    return code, out.getvalue(), err.getvalue()


def struck(served: Served, strike: Strike, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    environment = {**os.environ, "HF_ENDPOINT": served.url}
    asked = command(*map(str, arguments), module="lawa_exp.readout", strike=strike)
    return subprocess.run(asked, capture_output=True, text=True, timeout=300, env=environment)


def losses(found: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
    return {(r["step"], r["weights"]): r["loss"] for r in found if r["split"] == "val" and r["step"]}


@pytest.mark.parametrize("signal, code", [pytest.param("SIGKILL", -9, marks=pytest.mark.slow), ("SIGTERM", 75)])
def test_revisions_of_a_hub_give_the_losses_of_the_run(
    signal: str, code: int, served: Served, trained: Path, tmp_path: Path
) -> None:
    """A window at a time; killed or stopped it goes on, with the bytes of a read-out that was not."""
    out, twin = tmp_path / "out", tmp_path / "twin"
    served.watch = out
    asked = ["hf:someone/tiny", "--revisions", "step10..step60", *ASKED]
    strike = Strike("lawa_exp.evaluation.score:OnModel.__call__", n=14, signal=signal)
    done = struck(served, strike, *asked, "--out", out)
    assert done.returncode == code, done.stderr
    assert ("stopped at step 40, saved up to step 30; the same command goes on" in done.stdout) == (code == 75)
    assert not (out / "metrics.jsonl").exists()
    steps = [json.loads(line).get("step") for line in (out / "progress.jsonl").read_text().splitlines()]
    assert steps == [None, 10, 20, 30], "four, then five evaluations at a step: struck at step 40"
    before = len(served.got)
    code, printed, errors = readout(served, *asked, "--out", out)
    assert code == 0, errors
    assert "going on behind step 30" in printed
    again = {revision for revision, file in served.got[before:] if file == "model.safetensors"}
    assert again == {"step50", "step60"}, "those of the window were still there"
    assert served.most <= 4, "the three of the widest window, and the next"
    assert not list(out.rglob("*.safetensors")) and {p.name for p in out.iterdir()} >= {"metrics.jsonl", "summary.md"}
    found = losses(rows(out))
    own = {k: v for k, v in losses(rows(trained)).items() if not k[1].startswith(("ema", "swa"))}
    assert {k: found[k] for k in own} == own and len(own) == 6 + 5 + 4
    assert readout(served, *asked, "--out", twin)[0] == 0
    assert (out / "metrics.jsonl").read_bytes() == (twin / "metrics.jsonl").read_bytes()
    got = len(served.got)
    code, printed, _ = readout(served, *asked, "--out", out)
    assert code == 0 and "was read out already" in printed and len(served.got) <= got + 1
    assert not list(out.rglob("config.json")), "nothing that was fetched stays"


def test_half_a_line_and_a_kill_before_the_results_lose_nothing(served: Served, tmp_path: Path) -> None:
    """Of an EMA, whose state goes on; and what another read-out left is not taken for its own."""
    out = tmp_path / "out"
    asked = ["--revisions", "step10..step60", "--dataset", "pydocs", "--avg", "ema", "--decay", "0.5", *EVALUATED]
    strike = Strike("lawa_exp.readout.command:write_rows")
    done = struck(served, strike, "hf:someone/tiny", *asked, "--out", out)
    assert done.returncode == -9, done.stderr
    progress = out / "progress.jsonl"
    progress.write_text(progress.read_text() + '{"step": 60, "ro')
    shutil.copytree(out, tmp_path / "other")
    before = len(served.got)
    code, printed, errors = readout(served, "hf:someone/tiny", *asked, "--out", out)
    assert code == 0 and "going on behind step 50" in printed, errors
    assert {revision for revision, file in served.got[before:] if file == "model.safetensors"} <= {"step60"}
    assert [json.loads(line).get("step") for line in progress.read_text().splitlines()][-2:] == [60, None]
    asked[asked.index("0.5")] = "0.25"
    begun = (tmp_path / "other" / "progress.jsonl").read_bytes()
    code, _, errors = readout(served, "hf:someone/tiny", *asked, "--out", tmp_path / "other")
    assert code == 2 and "a read-out of something else was begun there" in errors
    assert (tmp_path / "other" / "progress.jsonl").read_bytes() == begun
    code, printed, errors = readout(served, "hf:someone/tiny", *asked, "--out", out)
    assert code == 0 and "going on" not in printed, "it was finished"


def test_folders_laid_out_as_revisions_and_fewer_of_them(served: Served, folders: Path, tmp_path: Path) -> None:
    """Old files, too: half-precision PyTorch shards, masks beside the weights. What is not needed is not fetched."""
    for step in (20, 30, 40, 60):
        folder = served.root / f"step{step}"
        tensors = {n: t.half() for n, t in read_tensors(folder / "model.safetensors").items()}
        tensors["gpt_neox.layers.0.attention.bias"] = torch.ones(1, 1, 32, 32, dtype=torch.bool)
        (folder / "model.safetensors").unlink()
        names = sorted(tensors)
        files = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, held in files.items():
            torch.save({n: tensors[n] for n in held}, folder / file)
        index = {"weight_map": {n: file for file, held in files.items() for n in held}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    asked = ["--revisions", "step20..step60", "--every", "30", "--k", "2", "--spacing", "20", "--dataset", "pydocs"]
    out = tmp_path / "out"
    code, _, errors = readout(served, "hf:someone/tiny", *asked, *EVALUATED, "--out", out)
    assert code == 0, errors
    assert {r for r, file in served.got if file.endswith(".bin")} == {"step30", "step40", "step60"}
    assert set(losses(rows(out))) == {(30, "live"), (60, "live"), (60, "lawa-k2-s20")}
    assert "left out" not in (out / "summary.md").read_text()
    code, _, errors = readout(None, served.root, *asked, *EVALUATED, "--out", tmp_path / "local")
    assert code == 0, errors
    assert losses(rows(tmp_path / "local")) == losses(rows(out))
    assert len(list(served.root.iterdir())) == 7, "folders on the disk are only read"
    asked += [*EVALUATED, "--out", tmp_path / "local"]
    assert "was read out already" in readout(None, served.root, *asked)[1]
    shutil.copy(served.root / "step20" / "config.json", served.root / "step40")
    assert "was read out already" not in readout(None, served.root, *asked)[1], "written anew"


def test_mistakes_are_one_line_and_nothing_is_lost(served: Served, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "out", "--k", "2", "--dataset", "pydocs", *EVALUATED]

    def refused(served: Served, *arguments: Any, code: int = 2) -> str:
        found, _, errors = readout(served, *arguments)
        assert found == code and len(errors.splitlines()) == 1, errors
        return errors

    here = "hf:someone/tiny"
    said = refused(served, here, "--revisions", "step10..step55", *out)
    assert "--revisions=step10..step55: tiny has no step55; it has step50 and step60" in said
    assert "expected step1000..step143000" in refused(served, here, "--revisions", "main", *out)
    assert "no such model on the Hugging Face hub" in refused(served, "hf:someone/else", *out)
    served.cut.add("model.safetensors")
    said = refused(served, here, "--revisions", "step10..step30", *out, code=1)
    assert "model.safetensors" in said and "the same command goes on" in said
    served.cut.clear()
    code, _, errors = readout(served, here, "--revisions", "step10..step30", *out)
    assert code == 0, errors
    for lock in (tmp_path / "out" / ".lock", tmp_path / "out" / ".fetched-someone--tiny.lock"):
        with locked(lock, "x"):
            said = refused(served, here, "--revisions", "step10..step30", *out)
        assert f"in use by process {os.getpid()}" in said and str(tmp_path / "out") in said
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (served.root / "step20" / "model.safetensors").rename(served.root / "step20" / "model-00001-of-00002.safetensors")
    (served.root / "step20" / "model.safetensors.index.json").write_text(json.dumps(index))
    said = refused(served, here, "--revisions", "step20..step30", "--name", "x", *out[2:], "--out", tmp_path / "other")
    assert "step20: model-00002-of-00002.safetensors, which its index names, is not there" in said
    os.truncate(served.root / "step30" / "model.safetensors", 9000)
    said = refused(served, served.root, "--revisions", "step30..step60", *out[2:], "--out", tmp_path / "third")
    assert f"{served.root / 'step30' / 'model.safetensors'} is damaged" in said
    shard = "model-00001-of-00002.safetensors"
    index = {"weight_map": dict.fromkeys(read_tensors(served.root / "step60" / "model.safetensors"), shard)}
    (served.root / "step60" / "model.safetensors").rename(served.root / "step60" / shard)
    (served.root / "step60" / "model.safetensors.index.json").write_text(json.dumps(index))
    last = ["--revisions", "step50..step60", *out[2:], "--spacing", "10", "--out", tmp_path / "fourth"]
    served.cut.add(shard)
    said = refused(served, here, *last, code=1)
    assert shard in said and "the same command goes on" in said
    os.truncate(served.root / "step60" / shard, 9000)
    assert f"{served.root / 'step60' / shard} is damaged" in refused(served, served.root, *last)
    (served.root / "step60" / shard).unlink()
    assert shard in refused(served, served.root, *last)


def test_savings_are_priced_by_the_whole_training(folders: Path, tmp_path: Path) -> None:
    asked = ["--revisions", "step10..step30", "--dataset", "pydocs", "--k", "2", "--spacing", "10", *EVALUATED]
    code, printed, errors = readout(None, folders, *asked, "--gpu-hours", "30", "--out", tmp_path / "out")
    assert code == 0, errors
    assert "0.5 GPU hours a step" in printed, "60 steps, of which 30 are read"


def test_a_missing_folder_inside_the_range_is_told(folders: Path, tmp_path: Path) -> None:
    root = shutil.copytree(folders, tmp_path / "tiny")
    shutil.rmtree(root / "step30")
    asked = ["--revisions", "step10..step60", "--dataset", "pydocs", "--k", "2", "--spacing", "10", *EVALUATED]
    code, printed, errors = readout(None, root, *asked, "--out", tmp_path / "out")
    assert code == 0, errors
    assert "lawa-k2-s10 is not there at step 40: no checkpoint of step 30." in printed
    steps = {step for step, weights in losses(rows(tmp_path / "out")) if weights == "lawa-k2-s10"}
    assert steps == {20, 50, 60}


def results_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.glob("lm_eval/*/results_*.json")}


def test_zero_shot_and_perplexity_of_weights_in_memory(trained: Path, folders: Path, tmp_path: Path) -> None:
    """Of a run of ours, and of the same weights as folders of a GPT-NeoX with a tokenizer that is named."""
    pytest.importorskip("lm_eval", reason="needs lawa_exp[zeroshot]")
    documents = [{"query": f"Question: {i} and {i}?", "choices": [str(2 * i), "no"], "gold": i % 2} for i in range(6)]
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "arc_easy.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    said = [{"context": f"He said it {i} times, and then", "continuation": "again"} for i in range(4)]
    (tmp_path / "tasks" / "lambada_openai.jsonl").write_text("".join(json.dumps(d) + "\n" for d in said))
    published = "suite,model,shot,step,task,metric,value,stderr\n"
    published += "".join(f"pythia-v1,tiny,zero-shot,60,{t},acc,0.5,0.1\n" for t in ("arc_easy", "lambada_openai"))
    (tmp_path / "evals.csv").write_text(published)
    asked = ["--evaluate", "zeroshot", "--tasks", "arc_easy,lambada_openai", "--task-data", tmp_path / "tasks"]
    asked += ["--k", "2", "--spacing", "20", "--threads", "1", "--gpu-hours", "6", "--steps-per-epoch", "20"]
    own = readout(None, trained, *asked, "--out", tmp_path / "own")
    assert own[0] == 0, own[2]
    flags = ["--tokenizer", "bytes", "--revisions", "step20..step60", "--published", tmp_path / "evals.csv"]
    theirs = readout(None, folders, *asked, *flags, "--out", tmp_path / "theirs")
    assert theirs[0] == 0, theirs[2]
    found, again = rows(tmp_path / "own"), rows(tmp_path / "theirs")
    measured = {(r["step"], r["weights"], r["task"], r["metric"]): r["value"] for r in found if "task" in r}
    assert {(t, m) for _, _, t, m in measured} == {
        *[("arc_easy", "acc"), ("arc_easy", "acc_norm"), ("lambada_openai", "perplexity")],
        *[("lambada_openai", "acc"), ("average", "acc")],
    }
    assert {w for _, w, _, _ in measured} == {"live", "lawa-k2-s20"}
    differs = [
        k for k in measured if k[0] == 60 and k[1] == "live" and measured[k] != measured[(60, "lawa-k2-s20", *k[2:])]
    ]
    assert ("lambada_openai", "perplexity") in {k[2:] for k in differs}
    same = {
        (r["step"], r["weights"], r["task"], r["metric"]): r["value"]
        for r in again
        if "task" in r and "source" not in r
    }
    assert same.items() <= measured.items() and {k[0] for k in same} == {20, 40, 60}
    assert [r["value"] for r in again if "source" in r] == [0.5, 0.5]
    assert not list(tmp_path.rglob("*.safetensors")), "no copy on the disk"
    summary = (tmp_path / "theirs" / "summary.md").read_text()
    assert "| 1 - mean accuracy, step 60 |" in summary and "1 - mean accuracy: live" in theirs[1]
    assert "live, published" in summary and "20 steps an epoch; 0.1 GPU hours a step" in summary
    results = {r: json.loads((tmp_path / "own" / r).read_text()) for r in results_in(tmp_path / "own")}
    assert results.keys() == {f"lm_eval/{weights}/results_step_{step:08d}.json" for step, weights, _, _ in measured}
    for done in (own, theirs):
        assert "lm_eval/, metrics.jsonl, " in done[1].splitlines()[-1]
    for (step, weights, task, metric), value in measured.items():
        result = results[f"lm_eval/{weights}/results_step_{step:08d}.json"]
        assert task == "average" or result["results"][task][f"{metric},none"] == value
        assert result["model_name"] == f"{trained.name}/{weights}" and str(tmp_path) not in json.dumps(result)
    again = readout(None, folders, *asked, *flags, "--out", tmp_path / "theirs")
    assert again[0] == 0 and "was read out already" in again[1]
    (tmp_path / "tasks" / "arc_easy.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents[::-1]))
    for name in ("results_step_00000005.json", "notes.txt"):
        (tmp_path / "theirs" / "lm_eval" / "live" / name).write_text("{}")
    (tmp_path / "theirs" / "lm_eval" / "live" / "results_step_00000020.json").write_text("{}")
    again = readout(None, folders, *asked, *flags, "--out", tmp_path / "theirs")
    assert again[0] == 0 and "was read out already" not in again[1], "other documents"
    kept = {p.name for p in (tmp_path / "theirs" / "lm_eval" / "live").iterdir()}
    assert kept == {"notes.txt", *(f"results_step_000000{step}.json" for step in (20, 40, 60))}
    progress = tmp_path / "theirs" / "progress.jsonl"
    progress.write_text("".join(progress.read_text().splitlines(keepends=True)[:2]))  # killed behind step 20
    before = results_in(tmp_path / "theirs")
    for name in before - {"lm_eval/live/results_step_00000020.json"}:
        (tmp_path / "theirs" / name).unlink()
    again = readout(None, folders, *asked, *flags, "--out", tmp_path / "theirs")
    assert again[0] == 0 and "going on behind step 20" in again[1] and results_in(tmp_path / "theirs") == before
    alone = [*asked[:6], "--tokenizer", "bytes", "--threads", "1", "--out", tmp_path / "alone"]
    code, printed, errors = readout(None, folders / "step60", *alone)
    assert code == 0 and "lm_eval/live/results_step_" in printed.splitlines()[-1], errors
    assert len(results_in(tmp_path / "alone")) == 1
    (tmp_path / "book.txt").write_text("Once upon a time there was a loop.\n" * 20)
    asked = ["--evaluate", "perplexity", "--text", tmp_path / "book.txt", "--k", "2", "--spacing", "30"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        code, _, errors = readout(None, trained, *asked)
    assert code == 0, errors
    (tmp_path / "readouts" / "run-lawa-k2-s30-perplexity-book.txt").rename(tmp_path / "text")
    measured = {(r["weights"], r["metric"]): r for r in rows(tmp_path / "text") if r.get("task") and r["step"] == 60}
    assert measured["live", "word_perplexity"]["count"] == 160 and measured["live", "bits_per_byte"]["count"] == 700
    assert "words what white space separates" in (tmp_path / "text" / "summary.md").read_text()


TOKENIZER = Path(os.environ.get("LAWA_DATA", "")) / "neox_tokenizer" / "20B_tokenizer.json"


@pytest.mark.data
@pytest.mark.skipif(not TOKENIZER.is_file(), reason="needs neox_tokenizer and wikitext-2 in LAWA_DATA")
def test_pythia_on_wikitext2_with_the_published_tokenizer(tmp_path: Path) -> None:
    """Trained here, put on a hub with its tokenizer, and read out there without a word about model or tokenizer."""
    shape = ["model.layers=1", "model.width=32", "model.heads=2", "model.context=32"]
    small = ["evaluate.every=2", "evaluate.samples=4", "evaluate.batch_size=4", "trainer.threads=1"]
    asked = [
        "model=pythia_14m",
        "dataset=wikitext2",
        "dataset.tokenizer=neox",
        *shape,
        *small,
        "batch.size=2",
        "steps=6",
    ]
    done = run(*asked, "k=2", "spacing=2", f"run_dir={tmp_path / 'run'}", warm=True)
    assert done.returncode == 0, done.stderr
    settings = config_from(RunDir(tmp_path / "run").read_config() or {}).model
    for step, path in steps_in(tmp_path / "run" / "trajectory").items():
        folder = tmp_path / "hub" / f"step{step}"
        write_configuration(folder, settings)
        shutil.copy(path / "model.safetensors", folder)
        shutil.copy(TOKENIZER, folder / "tokenizer.json")
    with serving(Served(tmp_path / "hub")) as served:
        asked = ["hf:someone/tiny", "--revisions", "step2..step6", "--k", "2", "--dataset", "wikitext2", *small]
        code, _, errors = readout(served, *asked, "--out", tmp_path / "out")
        assert code == 0, errors
        code, _, errors = readout(served, *asked, "dataset.tokenizer=gpt2", "--out", tmp_path / "other")
        assert code == 2 and errors.startswith("error: dataset.tokenizer=gpt2 does not fit the model:"), errors
        asked[asked.index("wikitext2")] = "pydocs"
        code, _, errors = readout(served, *asked, "--out", tmp_path / "other")
        assert code == 2 and "dataset=pydocs (tokenizer bytes) does not fit the model: " in errors
        assert "tokenizer.json gives other tokens" in errors
    own = losses(rows(tmp_path / "run"))
    assert losses(rows(tmp_path / "out")) == own and {w for _, w in own} == {"live", "lawa-k2-s2"}
    wrong = ["--evaluate", "perplexity", "--text", tmp_path / "run" / "config.yaml", "--tokenizer", "bytes"]
    code, _, errors = readout(None, tmp_path / "hub", *wrong, "--k", "2", "--out", tmp_path / "third")
    assert code == 2 and "--tokenizer=bytes does not fit the model: " in errors and "gives other tokens" in errors
    for folder in (tmp_path / "hub").iterdir():
        (folder / "tokenizer.json").unlink()
    code, _, errors = readout(None, tmp_path / "hub", *wrong, "--k", "2", "--out", tmp_path / "third")
    assert code == 2 and "--tokenizer=bytes does not fit the model: 256 tokens, and a vocabulary of 50,304" in errors


def test_an_exported_model_of_bytes_is_read_out_with_its_own_tokenizer(tmp_path: Path) -> None:
    """A vocabulary that is mostly empty: what lies beside the weights decides."""
    shape = ["model.layers=1", "model.width=32", "model.heads=2", "model.context=32", "model.vocab_size=2048"]
    asked = ["model=pythia_14m", "dataset=pydocs", *shape, "batch.size=2", "steps=20", "lr.warmup_steps=1"]
    done = run(*asked, *EVALUATED, "avg=lawa", "k=2", "spacing=10", f"run_dir={tmp_path / 'run'}", warm=True)
    assert done.returncode == 0, done.stderr
    for step in (10, 20):
        export(tmp_path / "run", "huggingface", tmp_path / "ours" / f"step{step}", step=step)
    asked = ["--k", "2", "--spacing", "10", "--revisions", "step10..step20", *EVALUATED]
    code, _, errors = readout(None, tmp_path / "ours", *asked, "--dataset", "pydocs", "--out", tmp_path / "out")
    assert code == 0, errors
    assert losses(rows(tmp_path / "out")) == losses(rows(tmp_path / "run"))
    (tmp_path / "book.txt").write_text("Once upon a time.\n" * 20)
    text = ["--evaluate", "perplexity", "--text", tmp_path / "book.txt", *asked[: -len(EVALUATED)]]
    code, _, errors = readout(None, tmp_path / "ours", *text, "--out", tmp_path / "text")
    assert code == 0, errors
