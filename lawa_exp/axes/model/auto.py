"""Any model of transformers that gives scores (`.logits`), from its config.json alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.axes.model.vocabulary import check_vocabulary
from lawa_exp.config.rules import either, integer, mapping, optional, plain_name, setting, text
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError, one_line
from lawa_exp.system.files import read_json

if TYPE_CHECKING:
    from typing import Self

    from torch import nn

    from lawa_exp.axes.choice import Planned

NOT_TAKEN = (  # settings that fetch or run something, or that only loading uses
    *("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal"),
    *("experts_implementation", "_experts_implementation", "transformers_version"),
)
OF_THE_SAVER = (*NOT_TAKEN[1:], "_name_or_path", "dtype", "torch_dtype")  # no part of the model
PLACE, OTHER = "model.config", "choose model=custom with a builder of your own"
KEYS = ("architectures", "model_type")
POSITIONS = ("max_position_embeddings", "n_positions")
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class AutoSettings(ModelSettings):
    """The class of transformers that config.json names, with weights from the seed, or those of `init.from=FOLDER`.

    config: becomes the content of config.json, so that the id is of the content and not of its place. Weights are
    float32, whatever the folder has.
    """

    inputs: ClassVar[str] = "any"
    outside: ClassVar[bool] = True
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    config: dict[str, Any] | str = setting(either(mapping(), text()), "folder with a config.json of transformers")
    context: int = setting(integer(1), "tokens in one sequence")
    vocab_size: int | None = setting(
        optional(integer(1)), "number of tokens of the vocabulary; null: config.json's", default=None
    )

    def __post_init__(self) -> None:
        content = of_folder(Path(self.config)) if isinstance(self.config, str) else self.config
        content = {key: value for key, value in content.items() if key not in OF_THE_SAVER}
        if missing := [key for key in KEYS if not content.get(key)]:
            raise UserError(f"config: has no {missing[0]}; expected the config.json of a model of transformers")
        names = content["architectures"]
        if not (isinstance(names, list) and isinstance(names[0], str)):
            raise UserError(f"config: architectures={names}: expected a list of the name of a class")
        object.__setattr__(self, "config", content)
        own = content.get("vocab_size", self.vocab_size)
        if self.vocab_size not in (None, own):
            raise UserError(f"vocab_size={self.vocab_size}: config.json has vocab_size={own}; null follows it")
        object.__setattr__(self, "vocab_size", own)

        positions = next((content[key] for key in POSITIONS if isinstance(content.get(key), int)), None)
        if positions is not None and self.context > positions > 0:
            raise UserError(f"context={self.context}: config.json has {positions} positions; choose at most these")

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        if data.vocab_size is not None:
            if self.vocab_size is None:
                raise UserError(f"model.config has no vocab_size, and dataset={name} has tokens; give model.vocab_size")
            check_vocabulary(self.vocab_size, data, name)
        return self

    def warnings(self, planned: Planned) -> Iterator[str]:
        if planned.config.dataset.inputs == "masked tokens":
            yield (
                f"{self.named}: it is given no attention mask, so it attends to the padding of short samples; "
                "a builder of your own (model=custom) can mask it"
            )
        place, data = planned.config.init.from_, planned.config.dataset
        own = Path(place) / TOKENIZER if place else None
        is_used = own and data.tokenizer_path and Path(data.tokenizer_path).resolve() == own.resolve()
        if own and "tokens" in data.inputs and own.is_file() and not is_used:
            yield (
                f"init.from={place}: its {TOKENIZER} is not used; dataset={data.name} has tokens of its own, and where "
                f"these are others the weights do not know them. dataset.tokenizer_path={own} takes it for a text"
            )

    def build(self) -> nn.Module:
        assert isinstance(self.config, dict)
        config, (architecture, *_) = configuration(self.config, PLACE, OTHER), self.config["architectures"]
        import transformers

        built = getattr(transformers, architecture, None)
        if not (isinstance(built, type) and issubclass(built, transformers.PreTrainedModel)):
            raise UserError(f"{PLACE}: transformers {transformers.__version__} has no model {architecture}; {OTHER}")
        with building(PLACE, OTHER):
            model: nn.Module = built(config)
        return model


def configuration(content: Mapping[str, Any], place: str, other: str) -> Any:
    """transformers' own configuration of a config.json's content; no code of the model's is run.

    UserError, which begins with `place` and ends with what else can be done (`other`): it is of none.
    """
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.utils import logging
    except ImportError:
        raise UserError(f"{place} needs the package transformers: pip install 'lawa_exp[transformers]'") from None
    logging.set_verbosity_error()
    if "quantization_config" in content:
        raise UserError(f"{place}: the weights are quantised (quantization_config), and such weights are not averaged")
    kind = content["model_type"]
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        own = "; its own code, which auto_map names, is not run" if "auto_map" in content else ""
        raise UserError(f"{place}: model_type={kind} is none of this version of transformers{own}; {other}")
    with building(place, other):
        return CONFIG_MAPPING[kind].from_dict({k: v for k, v in content.items() if k not in NOT_TAKEN})


@contextmanager
def building(place: str, other: str) -> Iterator[None]:
    """Whatever transformers raises, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(str(error))[:200]}"
        raise UserError(f"{place}: transformers cannot build this model ({what}); {other}") from None


def of_folder(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"config={path}: expected a folder with transformers' config.json")
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"config={file}: expected a JSON object")
    return content
