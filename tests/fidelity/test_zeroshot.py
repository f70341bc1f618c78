"""Our task definitions over local files against the harness's own over the same documents, and its scores against ours.

The documents of the harness's tasks come from the hub; here they are made from the local form, in the schema that its
definitions expect, and its own configuration files read them.
"""

import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

lm_eval = pytest.importorskip("lm_eval", reason="needs lawa_exp[zeroshot]")

from lm_eval.api.task import ConfigurableTask  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lawa_exp.axes.dataset.tokenizers import load_tokenizer  # noqa: E402
from lawa_exp.evaluation.perplexity import Perplexity  # noqa: E402
from lawa_exp.evaluation.score import LanguageModel  # noqa: E402
from lawa_exp.evaluation.zeroshot import (  # noqa: E402
    LOCAL,
    ZeroShot,
    load_tasks,
    local_file,
    read_documents,
    task_manager,
    without_bars,
    without_root,
)
from lawa_exp.launch.compose import compose, read  # noqa: E402
from lawa_exp.readout.evaluators.zeroshot import shipped_file  # noqa: E402
from lawa_exp.runs.resolve import resolve_trainer  # noqa: E402
from lawa_exp.system.distributed import Ranks  # noqa: E402
from lawa_exp.system.errors import Failed, UserError  # noqa: E402

SHIPPED = Path(os.environ.get("LAWA_DATA", "")) / "zeroshot"
DOCUMENTS: dict[str, list[dict[str, Any]]] = {  # in the local form
    "lambada_openai": [
        {"context": "The cat sat on the mat and looked at the other", "continuation": "cat"},
        {"context": "She said:\n\n\"No. That is", "continuation": "\n\nmine\""},
        {"context": "two  blanks and then a", "continuation": "word"},
    ],
    "arc_easy": [
        {"query": "Question: What do plants need?", "choices": ["light", "a lamp of iron", "sand", "noise"], "gold": 0},
        {"query": "Question: Ice melts above", "choices": ["0 C", "50 C", "100 C"], "gold": 0},
    ],
    "arc_challenge": [{"query": "Question: Which?", "choices": ["this one", "that"], "gold": 1}],
    "piqa": [
        {"query": "Question: How do I open a jar?\n", "choices": ["turn the lid", "hit it with the lid"], "gold": 0},
        {"query": "Question: dry a shirt \n", "choices": ["hang it", "drown it  "], "gold": 0},
    ],
    "winogrande": [
        {"context_options": ["Ann met Mary, and Ann", "Ann met Mary, and Mary"], "continuation": "left.", "gold": 1},
        {"context_options": ["Maria thanked Mario, so Maria", "Maria thanked Mario, so Mario"],
         "continuation": "was thanked.", "gold": 1},
    ],
    "sciq": [{"query": "Cells divide.\nQuestion: What divides?", "choices": ["a", "b", "c", "cells"], "gold": 3}],
}  # fmt: skip


def as_the_hub_has(task: str, document: dict[str, Any]) -> dict[str, Any]:
    """A local document in the schema of the harness's data set."""
    if task == "lambada_openai":
        return {"text": f"{document['context']} {document['continuation']}"}
    if task == "winogrande":
        one, two = document["context_options"]
        differs = (i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
        cut = next(differs, min(len(one), len(two)))
        sentence = f"{one[:cut]}_ {document['continuation']}"
        return {"sentence": sentence, "option1": one[cut:], "option2": two[cut:], "answer": str(document["gold"] + 1)}
    choices, gold = document["choices"], document["gold"]
    if task == "piqa":
        goal = document["query"].removeprefix("Question: ").removesuffix("\n")
        return {"goal": goal, "sol1": choices[0], "sol2": choices[1], "label": gold}
    if task == "sciq":
        support, question = document["query"].split("\nQuestion: ")
        others = {f"distractor{i}": c for i, c in enumerate(choices[:3], 1)}
        return {"support": support, "question": question, **others, "correct_answer": choices[3]}
    labels = ["A", "B", "C", "D", "E"][: len(choices)]
    question = document["query"].removeprefix("Question: ")
    return {"question": question, "choices": {"text": choices, "label": labels}, "answerKey": labels[gold]}


def own_task(name: str, documents: list[dict[str, Any]]) -> Any:
    """The harness's own definition, from its own file, over these documents."""
    from datasets import Dataset

    manager = task_manager([name])
    config = dict(lm_eval.tasks._yaml_loader.load_yaml(manager.task_index[name].yaml_path, resolve_func=True))
    listed = Dataset.from_list([as_the_hub_has(name, d) for d in documents])
    for key in ("dataset_path", "dataset_name", "training_split", "tag", "include"):
        config.pop(key, None)
    return ConfigurableTask(config={**config, "custom_dataset": lambda **_: {"validation": listed, "test": listed}})


@pytest.fixture(scope="module")
def model() -> tuple[LanguageModel, torch.device]:
    overrides = ["model.layers=1", "model.heads=2", "model.width=32", "model.context=48", "trainer.threads=1"]
    unresolved, _ = read(*compose(overrides)[0][0])
    trainer = resolve_trainer(unresolved.trainer, "cpu", 1)
    return LanguageModel(unresolved.model, unresolved.seed, trainer, batch_size=4), torch.device("cpu")


def scorer(model: tuple[LanguageModel, torch.device], tasks: dict[str, Any]) -> ZeroShot:
    return ZeroShot(*model, Ranks(), load_tokenizer("bytes", None), tasks, None, "tiny")


def scored(model: tuple[LanguageModel, torch.device], tasks: dict[str, Any]) -> Any:
    score = scorer(model, tasks)
    return score({name: t.clone() for name, t in score.model.state_dict().items() if name in score.swap.live})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    for name, documents in DOCUMENTS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    return folder


def files_of(names: Iterable[str], folder: Path) -> dict[str, Path | None]:
    return {name: local_file(name, folder) for name in names}


def test_a_task_whose_file_is_not_there_comes_from_the_hub(files: Path, tmp_path: Path, monkeypatch: Any) -> None:
    shutil.copytree(files, tmp_path / "zeroshot")
    (tmp_path / "zeroshot" / "sciq.jsonl").unlink()
    monkeypatch.setenv("LAWA_DATA", str(tmp_path))
    for module in ("datasets.config", "huggingface_hub.constants"):  # read from the environment at their import
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)
    assert shipped_file("piqa") == tmp_path / "zeroshot" / "piqa.jsonl" and shipped_file("sciq") is None
    with pytest.raises(Failed, match="--tasks sciq: no documents from the hub"):
        load_tasks({name: shipped_file(name) for name in ("piqa", "sciq")})


@pytest.mark.parametrize("name", LOCAL)
def test_local_definition_is_the_harness_own(name: str, files: Path, model: tuple[Any, torch.device]) -> None:
    assert_same_task(name, DOCUMENTS[name], load_tasks(files_of([name], files))[name], model)


@pytest.mark.data
@pytest.mark.skipif(not SHIPPED.is_dir(), reason="needs zeroshot in LAWA_DATA")
@pytest.mark.parametrize("name", [name for name in LOCAL if name != "sciq"])
@pytest.mark.parametrize("count", [100, pytest.param(None, marks=pytest.mark.slow)], ids=["some", "all"])
def test_shipped_documents_are_asked_as_the_harness_asks(name: str, count: int | None) -> None:
    """Requests and what is right, without a model."""
    documents = read_documents(name, SHIPPED / f"{name}.jsonl")[:count]
    ours, theirs = load_tasks(files_of([name], SHIPPED))[name], own_task(name, documents)
    asked = [requests_of(task, count) for task in (ours, theirs)]
    assert len(asked[0]) >= len(documents) and asked[0] == asked[1]


def requests_of(task: Any, count: int | None = None) -> list[Any]:
    task.build_all_requests(limit=count, rank=0, world_size=1)
    return [(i.doc_id, i.idx, i.request_type, i.args, task.doc_to_target(i.doc)) for i in task.instances]


def assert_same_task(name: str, documents: list[Any], ours: Any, model: tuple[Any, torch.device]) -> None:
    theirs = own_task(name, documents)
    assert requests_of(ours) == requests_of(theirs) and ours.VERSION == theirs.VERSION
    found = [scored(model, {name: task}) for task in (ours, theirs)]
    assert found[0].measures == found[1].measures and found[0].fields == found[1].fields
    metrics = [m["metric"] for m in found[0].measures if m["task"] == name]
    assert metrics == [m["metric"] for m in theirs.config.metric_list]


def test_mean_over_tasks_and_its_weights(files: Path, model: tuple[Any, torch.device]) -> None:
    found = scored(model, load_tasks(files_of(LOCAL, files)))
    accuracies = [m["value"] for m in found.measures if m["metric"] == "acc" and m["task"] != "average"]
    assert len(accuracies) == len(LOCAL)
    average = {"task": "average", "metric": "acc", "value": pytest.approx(np.mean(accuracies))}
    assert found.measures[-1] == {"split": "zeroshot", **average}
    assert found.fields["loss"] == pytest.approx(1 - np.mean(accuracies))
    assert found.sums[:, 0].sum() / found.sums[:, 1].sum() == pytest.approx(found.fields["loss"])


def test_results_are_in_the_form_of_the_harness(files: Path, model: tuple[Any, torch.device], tmp_path: Path) -> None:
    """Its evaluation of the same weights, as its own tracker writes it; and its table of them."""
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.utils import get_results_filenames, make_table

    tasks = load_tasks(files_of(["arc_easy", "winogrande"], files))
    score = scorer(model, tasks)
    ((name, text),) = score(dict(score.swap.live)).files("lawa-k2-s20", 60).items()
    assert name == "lm_eval/lawa-k2-s20/results_step_00000060.json" and get_results_filenames([name]) == [name]
    found = lm_eval.evaluator.evaluate(score.lm, {"tasks": tasks}, bootstrap_iters=1)
    samples = found.pop("samples")
    tracker = EvaluationTracker(str(tmp_path))
    tracker.general_config_tracker.log_experiment_args("lawa_exp", {"model": "tiny/lawa-k2-s20"}, None, None, False)
    tracker.save_results_aggregated(found, samples)
    (path,) = tmp_path.glob("tiny__lawa-k2-s20/results_*.json")
    ours, theirs = json.loads(text), json.loads(path.read_text())
    assert make_table(ours) == make_table(theirs) and "|arc_easy" in make_table(ours)
    clock = {"start_time", "end_time", "total_evaluation_time_seconds"}
    assert ours["results"].pop("arc_easy") == pytest.approx(theirs["results"].pop("arc_easy"))
    assert ours["results"].pop("winogrande") == pytest.approx(theirs["results"].pop("winogrande"))
    assert {key: ours[key] for key in theirs.keys() - clock} == {key: theirs[key] for key in theirs.keys() - clock}
    assert ours["config"]["model_args"] == {"model": "tiny/lawa-k2-s20", "step": 60}
    assert theirs.keys() <= ours.keys() and ours["lm_eval_version"] == lm_eval.__version__


def test_the_place_of_the_package_on_this_machine_is_left_out() -> None:
    source = task_manager(["arc_easy"]).task_index["arc_easy"].yaml_path
    assert source.is_absolute() and without_root(str(source)) == "lm_eval/tasks/arc/arc_easy.yaml"


def test_bars_are_left_out_and_nothing_else(
    files: Path, model: tuple[Any, torch.device], capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = load_tasks(files_of(["arc_easy", "sciq"], files))
    requests_of(tasks["sciq"])
    assert "1/1" in capsys.readouterr().err, "its own bar"
    score = scorer(model, tasks)
    score.model.register_forward_pre_hook(lambda *_: print("a [note]\nof two lines", file=sys.stderr))
    score(dict(score.swap.live))
    assert set(capsys.readouterr().err.splitlines()) == {"a [note]", "of two lines"}
    with pytest.raises(ZeroDivisionError), without_bars():
        for number in tqdm([1, 0], desc="a bar"):
            print(f"{1 // number} behind the bar", file=sys.stderr)
    assert capsys.readouterr().err == "1 behind the bar\n"


def test_scores_and_perplexity_are_those_of_the_harness_model(model: tuple[Any, torch.device], tmp_path: Path) -> None:
    """The harness's HFLM over the same GPT-NeoX: likelihoods and greedy choices, also of what exceeds the context."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    pytest.importorskip("accelerate")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    from lawa_exp.axes.dataset.tokenizers import read_tokenizer
    from lawa_exp.axes.model.pythia.pythia import write_configuration
    from lawa_exp.evaluation.zeroshot import harness_model
    from lawa_exp.storage.safetensors import write_tensors

    text = "the cat sat on the mat and the dog sat on the cat, which was not amused at all. " * 3
    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([text], trainer)
    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = read_tokenizer(tmp_path / "tokenizer.json", "tiny")
    overrides = ["model.layers=2", "model.heads=2", "model.width=32", "model.context=16", "model.vocab_size=320"]
    unresolved, _ = read(*compose(["model=pythia_14m", *overrides, "trainer.threads=1"])[0][0])
    subject = LanguageModel(
        unresolved.model, unresolved.seed, resolve_trainer(unresolved.trainer, "cpu", 1), batch_size=3
    )
    ours = Perplexity(subject, torch.device("cpu"), Ranks(), tokenizer, text, "text")
    write_configuration(tmp_path, unresolved.model)
    write_tensors(tmp_path / "model.safetensors", ours.swap.live)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>"
    )
    theirs = HFLM(
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tokenizer=fast, device="cpu", batch_size=2
    )
    assert theirs.max_length == 16
    pairs = [("the cat sat on the", " mat"), ("", "the dog"), (text[:150], " amused at all."), ("the ", "cat")]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = harness_model(ours, tokenizer, subject.batch_size).loglikelihood(asked)
    for mine, other in zip(found, theirs.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert mine == (pytest.approx(other[0], abs=1e-4), other[1])
    (nats,) = theirs.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (text,), 0)], disable_tqdm=True)
    of = {m["metric"]: m for m in ours(dict(ours.swap.live)).measures}
    tokens, words = len(tokenizer.encode(text)), len(text.split())
    assert (of["token_perplexity"]["count"], of["word_perplexity"]["count"]) == (tokens, words)
    assert of["token_perplexity"]["value"] == pytest.approx(np.exp(-nats / tokens), rel=1e-4)
    assert of["word_perplexity"]["value"] == pytest.approx(np.exp(-nats / words), rel=1e-4)
    assert of["bits_per_byte"]["value"] == pytest.approx(-nats / np.log(2) / len(text.encode()), rel=1e-5)


def test_what_is_wrong_with_tasks_is_one_line(files: Path, tmp_path: Path) -> None:
    for names, folder, said in (
        (["arc_easi"], files, "did you mean arc_easy"),
        (["arc_easy"], tmp_path, "it has no arc_easy.jsonl"),
    ):
        with pytest.raises(UserError, match=said):
            files_of(names, folder)
    (tmp_path / "sciq.jsonl").write_text('{"query": "Q\u2028", "choices": ["a", "b"], "gold": 1}\n', "utf-8")
    assert [d["query"] for d in read_documents("sciq", tmp_path / "sciq.jsonl")] == ["Q\u2028"], "one line"
    without = '{"query": "Q", "choices": ["a"], "number": 3}'
    other = '{"context": "Q", "continuation": "A"}'
    for line in ('{"query": "Q", "choices": ["a"], "gold": 1}', '{"query": "Q"}', "[]", '{"choices"', without, other):
        (tmp_path / "piqa.jsonl").write_text('{"query": "Q", "choices": ["a", "b"], "gold": 1}\n' + line)
        with pytest.raises(UserError, match="line 2 is not a document"):
            load_tasks({"piqa": tmp_path / "piqa.jsonl"})


@pytest.mark.slow  # the harness reads all its definitions
def test_task_that_the_harness_does_not_have() -> None:
    with pytest.raises(UserError, match="no_such_task: the harness has no such task"):
        load_tasks({"no_such_task": None})
