"""Any model of transformers that gives scores (`.logits`), from its config.json alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.axes.model.settings import ModelSettings
from lawa_exp.axes.model.vocabulary import check_vocabulary
from lawa_exp.config.rules import either, integer, mapping, optional, plain_name, setting, text
from lawa_exp.seams.dataset import DatasetFacts
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import read_json

if TYPE_CHECKING:
    from typing import Self

    from torch import nn

OF_THE_SAVER = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")  # no part of the model
KEYS = ("architectures", "model_type")


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
        object.__setattr__(self, "config", content)
        own = content.get("vocab_size", self.vocab_size)
        if self.vocab_size not in (None, own):
            raise UserError(f"vocab_size={self.vocab_size}: config.json has vocab_size={own}; null follows it")
        object.__setattr__(self, "vocab_size", own)

    def fitted(self, data: DatasetFacts, name: str) -> Self:
        if data.vocab_size is not None:
            if self.vocab_size is None:
                raise UserError(f"model.config has no vocab_size, and dataset={name} has tokens; give model.vocab_size")
            check_vocabulary(self.vocab_size, data, name)
        return self

    def build(self) -> nn.Module:
        try:
            import transformers
        except ImportError:
            raise UserError("model=auto needs transformers: pip install 'lawa_exp[transformers]'") from None
        assert isinstance(self.config, dict)
        values = dict(self.config)
        (architecture, *_), kind = values["architectures"], values.pop("model_type")
        built = getattr(transformers, architecture, None)
        if built is None:
            raise UserError(
                f"model.config: transformers {transformers.__version__} has no {architecture}; "
                "choose model=custom with a builder of your own"
            )
        model: nn.Module = built(transformers.AutoConfig.for_model(kind, **values))
        return model


def of_folder(path: Path) -> dict[str, Any]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"config={path}: expected a folder with transformers' config.json")
    content = read_json(file)
    if not isinstance(content, dict):
        raise UserError(f"config={file}: expected a JSON object")
    return content
