"""Models of transformers, by their config.json: causal and masked language models, classifiers of texts and images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lawa_exp.axes.model.auto import building, configuration
from lawa_exp.convert.as_loaded import as_loaded
from lawa_exp.convert.recognise.encoder import of_gpt2, of_transformers
from lawa_exp.convert.recognise.recognised import IMAGES, MASKED, TEXTS, TOKENS, Looked, Recognised
from lawa_exp.system.errors import UserError, one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

KINDS = {  # how a class in `architectures` ends: what it predicts, and the class of transformers that makes it
    "ForCausalLM": (TOKENS, "AutoModelForCausalLM"),
    "LMHeadModel": (TOKENS, "AutoModelForCausalLM"),
    "ForMaskedLM": (MASKED, "AutoModelForMaskedLM"),
    "ForSequenceClassification": (TEXTS, "AutoModelForSequenceClassification"),
    "ForImageClassification": (IMAGES, "AutoModelForImageClassification"),
}
PROCESSOR = "preprocessor_config.json"
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
    classes = len(config.id2label) if predicts in (TEXTS, IMAGES) else None
    if classes is not None and (classes == 1 or config.problem_type not in (None, "single_label_classification")):
        raise UserError(
            f"{path}: problem_type={config.problem_type}, {classes} labels: expected one class of several; "
            "--evaluate MODULE:FUNCTION evaluates others"
        )
    vocab_size = getattr(config, "vocab_size", None)
    longest = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    longest = longest if isinstance(longest, int) and longest > 0 else None
    if longest and config.model_type in BEHIND_PADDING:
        longest -= (config.pad_token_id or 0) + 1
    return Recognised(
        named,
        predicts,
        lambda: _built(maker, config, path),
        context=longest,
        vocab_size=vocab_size,
        classes=classes,
        encoder=lambda folders: of_transformers(folders) or (of_gpt2(vocab_size) if _is_gpt2(config) else None),
        labels={str(name): int(number) for name, number in (config.label2id or {}).items()} if classes else {},
        transform=(lambda _: _processor(looked.folders)) if predicts is IMAGES else None,
        channels=getattr(config, "num_channels", 3),
        loaded=as_loaded,
    )


def _processor(folders: Sequence[Path]) -> tuple[Callable[[Any], Tensor], str]:
    """The transform that preprocessor_config.json names; no code of the folder runs. UserError: there is none."""
    path = next((p for f in folders if (p := f / PROCESSOR).is_file()), None)
    if path is None:
        where = " or ".join(map(str, folders))
        raise UserError(f"no {PROCESSOR} in {where}: put it there, as it says how the model takes images")
    from transformers import AutoImageProcessor

    try:
        made: Any = AutoImageProcessor.from_pretrained(str(path.parent), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # several packages' own kinds
        raise UserError(f"{path} cannot be read ({one_line(str(error))[:150]})") from None

    def transform(image: Any) -> Tensor:
        pixels: Tensor = made(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels

    return transform, f"the image processor in {path.parent}"


def _is_gpt2(config: Any) -> bool:
    return bool(config.model_type == "gpt2")


def _built(maker: str, config: Any, path: Path) -> nn.Module:
    """float32, with its first weights: buffers that no checkpoint has are right then."""
    import torch
    import transformers

    make: Callable[..., nn.Module] = getattr(transformers, maker).from_config
    with building(str(path), "give --model MODULE:FUNCTION, which builds it"):
        return make(config, dtype=torch.float32, trust_remote_code=False)
