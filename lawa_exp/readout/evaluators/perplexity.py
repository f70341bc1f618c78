"""--evaluate perplexity: of any text, by token and by word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lawa_exp.config import rules
from lawa_exp.readout.evaluators.settings import EvaluatorSettings, flag
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.readout.evaluators.base import Checkpoints, Evaluator
    from lawa_exp.readout.request import Request


@dataclass(frozen=True)
class PerplexitySettings(EvaluatorSettings):
    """text: a UTF-8 file."""

    text: str | None = flag(rules.text(), "FILE", "a UTF-8 file")
    tokenizer: str | None = flag(
        rules.text(), "NAME", "bytes, gpt2, neox or a tokenizer.json (default: the run's or checkpoint's)"
    )

    def evaluator(self, request: Request, checkpoints: Checkpoints) -> Evaluator:
        from pathlib import Path

        from lawa_exp.evaluation.perplexity import NORMALISED, Perplexity
        from lawa_exp.readout.evaluators.base import file_digest, model_and_tokenizer, of_model
        from lawa_exp.readout.subject import Named
        from lawa_exp.system.files import LARGE, read_small

        if not self.text:
            raise UserError("--text is missing: expected a UTF-8 file")
        path = Path(self.text)
        try:
            text = read_small(path, LARGE).decode()
        except UnicodeDecodeError:
            raise UserError(f"--text={path}: not UTF-8 text") from None
        except OSError as error:
            raise UserError(f"--text={path}: {error.strerror or 'not UTF-8 text'}") from None
        model, device, ranks, tokenizer = model_and_tokenizer(request, checkpoints, self.tokenizer)
        score = Perplexity(model, device, ranks, tokenizer, text, path.name)
        identity = {
            "text": path.name,
            "content": file_digest(path),
            "tokenizer": tokenizer.fingerprint,
            "dtype": model.trainer.dtype,
        }
        named = Named(f"{checkpoints.name} on {path.name}", "nats per token", "loss")
        counted = f"{score.tokens:,} tokens, {score.words:,} words, {score.bytes:,} bytes"
        return replace(
            of_model(request.evaluation.model, score, named, identity),
            no_test="--text is one text",
            notes=[f"Perplexity of {path.name} ({counted}) by token and by word: {NORMALISED}."],
            label=f"perplexity-{path.name}",
        )
