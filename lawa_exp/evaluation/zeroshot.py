"""Zero-shot tasks through EleutherAI's lm-evaluation-harness, of weights in memory.

The prompts and metrics are the harness's own. Its documents come from the Hugging Face hub, or from local files, in
which they are written out already; tasks/*.yaml, in its own form, then say how they become its prompts.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lawa_exp.axes.dataset.tokenizers import Tokenizer
from lawa_exp.axes.objective.task_loss import scores_of
from lawa_exp.config.rules import near
from lawa_exp.evaluation.evaluate import evaluating
from lawa_exp.evaluation.result_files import Files, place_of
from lawa_exp.evaluation.score import InModel, LanguageModel, Scored
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.files import LARGE, read_small

if TYPE_CHECKING:
    from datasets import Dataset
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task
    from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker
    from lm_eval.tasks import TaskManager

BAR = re.compile(r"\r[^\r\n[]*\[[^]\r\n]*\]")  # as tqdm draws it
SPLIT = "zeroshot"  # of its rows: the tasks' own test or validation documents

TASKS = Path(__file__).parent / "tasks"
QUESTION = ("query", "choices", "gold")
LOCAL = {  # fields of a document, which is a line of TASK.jsonl; how it becomes prompts: tasks/TASK.yaml
    "lambada_openai": ("context", "continuation"),
    "arc_easy": QUESTION,
    "arc_challenge": QUESTION,
    "piqa": QUESTION,
    "winogrande": ("context_options", "continuation", "gold"),
    "sciq": QUESTION,
}

FOLDERS = {  # of the harness's tasks
    **{name: name for name in ("piqa", "winogrande", "sciq")},
    **{"lambada_openai": "lambada", "arc_easy": "arc", "arc_challenge": "arc"},
}


def harness() -> Any:
    """The package, without its chatter."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import lm_eval.evaluator
        import lm_eval.tasks
    except ImportError:
        raise UserError("--evaluate zeroshot needs lm-eval: pip install 'lawa_exp[zeroshot]'") from None
    for package in ("lm_eval", "huggingface_hub", "datasets"):
        logging.getLogger(package).setLevel(logging.ERROR)
    return lm_eval


def local_file(name: str, folder: Path) -> Path:
    """The documents of a task in `folder`. UserError names what lacks."""
    if name not in LOCAL:
        raise UserError(f"--tasks {name}: of local files {near(name, LOCAL)}")
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise UserError(f"--task-data {folder}: it has no {path.name}, the task's documents")
    return path


def read_documents(name: str, path: Path) -> list[dict[str, object]]:
    """The lines of a task's local file. UserError names the first that is not as its task needs it."""
    fields, documents = LOCAL[name], []
    options = "choices" if "choices" in fields else "context_options"
    for number, line in enumerate(read_small(path, LARGE).removesuffix(b"\n").split(b"\n"), 1):
        try:
            document = json.loads(line)
            needed = {field: document[field] for field in fields}
            if "gold" in fields and not 0 <= needed["gold"] < len(needed[options]):
                raise ValueError
        except (ValueError, TypeError, KeyError):
            raise UserError(f"{path}: line {number} is not a document of {name} ({', '.join(fields)})") from None
        documents.append(document)
    return documents


def load_tasks(files: Mapping[str, Path | None]) -> dict[str, Task]:
    """The harness's tasks by name: ours over a file of documents where there is one, else its own, from the hub."""
    documents = {name: read_documents(name, file) for name, file in files.items() if file}
    own = harness().tasks.TaskManager(include_path=str(TASKS), include_defaults=False)
    tasks: dict[str, Task] = {}
    for name, lines in documents.items():
        definition = own.task_index[name].cfg
        tasks |= own.load({**definition, "custom_dataset": dataset_of(lines)})["tasks"]
    tasks |= from_hub([name for name in files if name not in tasks])
    return {name: tasks[name] for name in files}


def from_hub(names: list[str]) -> dict[str, Task]:
    """The harness's own tasks by name."""
    if not names:
        return {}
    manager = task_manager(names)
    for name in names:
        if name not in manager.all_subtasks:
            raise UserError(f"--tasks {name}: the harness has no such task; {near(name, LOCAL)}")
    try:
        return dict(manager.load(names)["tasks"])
    except Exception as error:  # of several packages, and of the network
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise Failed(
            f"--tasks {','.join(names)}: no documents from the hub ({reason}); of local files: --task-data DIR"
        ) from None


def task_manager(names: Iterable[str]) -> TaskManager:
    """The harness's index of its own tasks: of those folders alone that have `names`, for all of them take seconds."""
    tasks = harness().tasks
    if not set(names) <= FOLDERS.keys():
        return tasks.TaskManager()
    places = {str(Path(tasks.__file__).parent / FOLDERS[name]) for name in names}
    return tasks.TaskManager(include_path=sorted(places), include_defaults=False)


def dataset_of(documents: list[dict[str, object]]) -> Callable[..., dict[str, Dataset]]:
    """What gives the documents to the harness, as its split `test`."""
    from datasets import Dataset

    return lambda **_: {"test": Dataset.from_list(documents)}


@contextmanager
def without_bars() -> Iterator[None]:
    """Leaves out what tqdm draws on sys.stderr; other lines that come there are shown at the end."""
    text = io.StringIO()
    try:
        with redirect_stderr(text):
            yield
    finally:
        lines = [line for line in BAR.sub("", text.getvalue()).split("\n") if line.strip()]
        if lines:
            print("\n".join(lines), file=sys.stderr)


class ZeroShot(InModel):
    """Evaluates weights on tasks. The loss is the mean over the tasks of 1 - acc.

    Its measures are {"split", "task", "metric", "value"} for each metric, with the "stderr" of accuracies, and the mean
    acc of all tasks as task "average". sums are by document, each weighted so that its task counts as one. Its files
    are the harness's own.
    """

    def __init__(
        self,
        subject: LanguageModel,
        device: torch.device,
        ranks: Ranks,
        tokenizer: Tokenizer,
        tasks: dict[str, Task],
        limit: int | None,
        run: str,
    ) -> None:
        """run: whose weights they are, as the harness's results call it."""
        super().__init__(subject, device, ranks)
        if ranks.world > 1:
            raise UserError("--evaluate zeroshot: on one rank only")
        self.tasks, self.limit, self.run, self.batch_size = tasks, limit, run, subject.batch_size
        self.lm = harness_model(self, tokenizer, subject.batch_size)

    def __call__(
        self, weights: Mapping[str, Tensor], split: str = "val", samples: int | None = None, bn: str | None = None
    ) -> Scored:
        evaluate = harness().evaluator.evaluate
        from lm_eval.loggers.evaluation_tracker import GeneralConfigTracker

        self.swap.place(weights)
        started, clock = time.time(), GeneralConfigTracker()
        with evaluating(self.model), without_bars():
            found = evaluate(self.lm, {"tasks": self.tasks}, limit=self.limit, bootstrap_iters=0, log_samples=True)
        measures, accuracies, sums = [], [], []
        for task in self.tasks:
            documents = found["samples"][task]
            for key, value in found["results"][task].items():
                metric, _, filtered = key.partition(",")
                if filtered != "none" or metric.endswith("_stderr"):
                    continue
                row = {"split": SPLIT, "task": task, "metric": metric, "value": float(value)}
                each = [d.get(metric) for d in documents]
                if len(each) > 1 and metric.startswith("acc"):
                    row["stderr"] = float(np.std(each, ddof=1) / len(each) ** 0.5)
                    found["results"][task][f"{metric}_stderr,none"] = row["stderr"]  # as it does with a bootstrap
                measures.append(row)
            if "acc,none" not in found["results"][task]:
                raise UserError(f"--tasks {task}: expected tasks that have an accuracy (acc)")
            right = np.array([d["acc"] for d in documents], dtype=float)
            accuracies.append(right.mean())
            weight = 1 / (len(self.tasks) * len(right))
            sums.append(np.stack([(1 - right) * weight, np.full(len(right), weight)], axis=1))
        average = float(np.mean(accuracies))
        measures.append({"split": SPLIT, "task": "average", "metric": "acc", "value": average})
        count = sum(len(s) for s in sums)
        files = self._files(found, started, clock)
        return Scored({"loss": 1 - average, "eval_samples": count}, np.concatenate(sums), tuple(measures), files)

    def _files(self, found: dict[str, Any], started: float, clock: GeneralConfigTracker) -> Files:
        """The results as the harness's `EvaluationTracker` writes them. started: seconds since 1970."""
        from importlib.metadata import version

        from lm_eval.utils import handle_non_serializable, hash_string

        results = {key: value for key, value in found.items() if key != "samples"}
        for config in results["configs"].values():
            if source := config.get("metadata", {}).get("config_source"):
                config["metadata"]["config_source"] = without_root(source)
        settings = {
            "batch_size": self.batch_size,
            "device": str(self.device),
            "limit": self.limit,
            "bootstrap_iters": 0,
        }
        hashes = {
            task: hash_string("".join(d["doc_hash"] + d["prompt_hash"] + d["target_hash"] for d in documents))
            for task, documents in found["samples"].items()
        }
        results |= {"date": started, "lm_eval_version": version("lm_eval"), "max_length": self.context}
        clock.log_end_time()

        def files(id: str, step: int) -> dict[str, str]:
            model = {"model": f"{self.run}/{id}", "step": step}
            clock.log_experiment_args("lawa_exp", model, None, None, False)
            config = {"model": "lawa_exp", "model_args": model, **settings}
            content = {**results, "config": config, "task_hashes": hashes, **asdict(clock)}
            text = json.dumps(content, indent=2, default=handle_non_serializable, ensure_ascii=False)
            return {place_of(id, step): text}

        return files


def without_root(source: str) -> str:
    """Where a task's definition is inside the harness's package: of its place on this machine no more."""
    root = Path(harness().__file__).parents[1]
    return str(Path(source).relative_to(root)) if Path(source).is_relative_to(root) else Path(source).name


def harness_model(inside: InModel, tokenizer: Tokenizer, batch_size: int) -> LM:
    """The model in `inside`, with whatever weights are in place, as the harness asks for one."""
    from lm_eval.api.model import TemplateLM

    context = inside.context

    class Model(TemplateLM):
        @property
        def eot_token_id(self) -> int:
            if tokenizer.end_of_text is None:
                raise UserError(f"the tokenizer {tokenizer.name} has no end of text, which an empty context needs")
            return tokenizer.end_of_text

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
            tokens: list[int] = tokenizer.encode(string).tolist()
            return tokens

        @torch.no_grad()
        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[object, list[int], list[int]]], **_: object
        ) -> list[tuple[float, bool]]:
            pairs = [(before, continuation) for _, before, continuation in requests]
            order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][0]) - len(pairs[i][1]))
            answers: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
            for begin in range(0, len(order), batch_size):
                batch = order[begin : begin + batch_size]
                rows = [(pairs[i][0] + pairs[i][1])[-(context + 1) :] for i in batch]
                inputs = torch.zeros(len(rows), max(len(r) for r in rows) - 1, dtype=torch.int64)
                for line, row in zip(inputs, rows, strict=True):  # behind its end a row is not looked at
                    line[: len(row) - 1] = torch.tensor(row[:-1])
                with inside.autocast():
                    logits = scores_of(inside.model(inputs.to(inside.device)))
                for i, row, of_row in zip(batch, rows, logits, strict=True):
                    targets = torch.tensor(pairs[i][1][-context:], device=inside.device)
                    last = len(row) - 1
                    scores = torch.log_softmax(of_row[last - len(targets) : last].float(), dim=-1)
                    total = scores.gather(1, targets[:, None]).sum()
                    answers[i] = (float(total), bool((scores.argmax(-1) == targets).all()))
            return answers

        def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
            answers: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return answers

        def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
            raise UserError("--tasks: a task that asks for a text's likelihood; for perplexity: --evaluate perplexity")

        def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
            raise UserError("--tasks: a task that asks for generated text; expected multiple choice or a last word")

    return Model()
