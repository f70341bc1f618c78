"""Models of transformers, by their config.json: causal and masked language models, classification of sequences."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.model.auto import building, configuration
from lawa_exp.convert.recognise.encoder import of_gpt2, of_transformers
from lawa_exp.convert.recognise.recognised import MASKED, TEXTS, TOKENS, Looked, Recognised
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from torch import nn

KINDS = {  # how a class in `architectures` ends: what it predicts, and the class of transformers that makes it
    "ForCausalLM": (TOKENS, "AutoModelForCausalLM"),
    "LMHeadModel": (TOKENS, "AutoModelForCausalLM"),
    "ForMaskedLM": (MASKED, "AutoModelForMaskedLM"),
    "ForSequenceClassification": (TEXTS, "AutoModelForSequenceClassification"),
}
BEHIND_PADDING = (  # positions begin behind the number of padding
    *("roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "data2vec-text", "xmod"),
    *("mpnet", "ibert", "longformer", "mra", "luke", "esm"),
)


def recognise(looked: Looked) -> Recognised | None:
    """None: no config.json of transformers lies there. UserError: it is of a model that cannot be built from it."""
    if looked.config is None or "model_type" not in looked.config[1]:
        return None
    path, content = looked.config
    names = content.get("architectures") or []
    named = str(names[0]) if isinstance(names, list) and names else ""
    kind = next((kind for end, kind in KINDS.items() if named.endswith(end)), None)
    other = "give --model MODULE:FUNCTION, which builds it"
    if kind is None:
        says = f"architectures={named or 'nothing'}"
        raise UserError(f"{path}: {says}: expected a class that ends with {', '.join(KINDS)}; {other}")
    predicts, maker = kind
    config = configuration(content, str(path), other)
    classes = len(config.id2label) if predicts is TEXTS else None
    if predicts is TEXTS and (classes == 1 or config.problem_type not in (None, "single_label_classification")):
        raise UserError(
            f"{path}: problem_type={config.problem_type}, {classes} labels: expected one class of several for a text; "
            "--evaluate MODULE:FUNCTION evaluates others"
        )
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    longest = longest if isinstance(longest, int) and longest > 0 else None
    if longest and config.model_type in BEHIND_PADDING:
        longest -= (config.pad_token_id or 0) + 1
    return Recognised(
        named,
        predicts,
        lambda: _built(maker, config, path),
        context=longest,
        vocab_size=config.vocab_size,
        classes=classes,
        encoder=lambda folders: of_transformers(folders) or (of_gpt2(config.vocab_size) if _is_gpt2(config) else None),
        labels={str(name): int(number) for name, number in (config.label2id or {}).items()} if classes else {},
    )


def _is_gpt2(config: Any) -> bool:
    return bool(config.model_type == "gpt2")


def _built(maker: str, config: Any, path: Path) -> nn.Module:
    """float32, with its first weights: buffers that no checkpoint has are right then."""
    import torch
    import transformers

    make: Callable[..., nn.Module] = getattr(transformers, maker).from_config
    with building(str(path), "give --model MODULE:FUNCTION, which builds it"):
        return make(config, dtype=torch.float32, trust_remote_code=False)
