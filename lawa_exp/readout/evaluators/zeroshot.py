"""--evaluate zeroshot: tasks of lm-evaluation-harness, weights in memory."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lawa_exp.config import rules
from lawa_exp.readout.evaluators.settings import EvaluatorSettings, flag
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from lawa_exp.readout.evaluators.base import Checkpoints, Evaluator
    from lawa_exp.readout.request import Request


@dataclass(frozen=True)
class ZeroShotSettings(EvaluatorSettings):
    """tasks: with commas; published: a table of Pythia's published evaluations."""

    tasks: str | None = flag(rules.text(), "A,B", "tasks, such as lambada_openai,arc_easy")
    task_data: str | None = flag(
        rules.text(), "DIR", "their documents: TASK.jsonl (default: LAWA_DATA's zeroshot/, else the hub)"
    )
    limit: int | None = flag(rules.integer(1), "N", "documents of each task (default: all)")
    published: str | None = flag(rules.text(), "FILE", "a table of Pythia's published evaluations, to be compared with")
    tokenizer: str | None = flag(
        rules.text(), "NAME", "bytes, gpt2, neox or a tokenizer.json (default: the run's or checkpoint's)"
    )

    def evaluator(self, request: Request, checkpoints: Checkpoints) -> Evaluator:
        from pathlib import Path

        from lawa_exp.evaluation.zeroshot import ZeroShot, load_tasks, local_file
        from lawa_exp.published import pythia_rows
        from lawa_exp.readout.averagers import readout_name
        from lawa_exp.readout.evaluators.base import file_digest, model_and_tokenizer, of_model
        from lawa_exp.readout.subject import Named

        if not self.tasks:
            raise UserError("--tasks is missing: expected tasks with commas, such as lambada_openai,arc_easy,piqa")
        names = list(dict.fromkeys(task.strip() for task in self.tasks.split(",")))
        published = []
        if self.published:
            try:
                published = pythia_rows(Path(self.published), checkpoints.name, names)
            except UserError as error:
                raise UserError(f"--published={self.published}, of {checkpoints.name}: {error}") from None
        model, device, ranks, tokenizer = model_and_tokenizer(request, checkpoints, self.tokenizer)
        folder = Path(self.task_data) if self.task_data else None
        files = {name: local_file(name, folder) if folder else shipped_file(name) for name in names}
        tasks = load_tasks(files)
        score = ZeroShot(model, device, ranks, tokenizer, tasks, self.limit, checkpoints.name)
        identity = {
            "tasks": list(tasks),
            "documents": {name: file_digest(file) for name, file in files.items() if file} or "hub",
            "published": published,
            "limit": self.limit,
            "tokenizer": tokenizer.fingerprint,
            "dtype": model.trainer.dtype,
        }
        named = Named(f"{checkpoints.name}, zero-shot", "mean over the tasks of 1 - acc", "1 - mean accuracy")
        places = dict.fromkeys(str(file.parent) if file else "the hub" for file in files.values())
        return replace(
            of_model(request.evaluation.model, score, named, identity),
            no_test="tasks have one split each",
            notes=[f"Documents: {' and '.join(places)}; prompts and metrics are lm-evaluation-harness's."],
            label=f"zeroshot-{readout_name(names)}",
            published=published,
        )


def shipped_file(task: str) -> Path | None:
    """The task's documents in zeroshot/ of LAWA_DATA, or of data/, where they are there."""
    from pathlib import Path

    from lawa_exp.evaluation.zeroshot import LOCAL

    if task not in LOCAL:
        return None
    places = [Path(root) / "zeroshot" / f"{task}.jsonl" for root in (os.environ.get("LAWA_DATA"), "data") if root]
    return next((place for place in places if place.is_file()), None)
