"""A data set of the Hugging Face hub, as it lies on the disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lawa_exp.axes.dataset.base import BaseSettings
from lawa_exp.axes.dataset.blocks import Blocks
from lawa_exp.axes.dataset.documents import open_documents
from lawa_exp.axes.dataset.layouts import files_at, is_pattern
from lawa_exp.axes.dataset.places import find
from lawa_exp.axes.dataset.tokenizers import NAMES, load_tokenizer
from lawa_exp.config.rules import one_of, optional, plain_name, setting, text

GET = (
    "give with dataset.path=DIR what `save_to_disk` of the package datasets has written, or a folder of Parquet files: "
    "`hf download OWNER/NAME --repo-type dataset --local-dir DIR`"
)


@dataclass(frozen=True)
class HfSettings(BaseSettings):
    """`path`: a folder that `save_to_disk` wrote, one of the cache of `datasets`, or a repository of the hub: Parquet,
    JSON lines or CSV, train, validation and test by their names. A sole split is cut: see `documents`.
    """

    inputs: ClassVar[str] = "tokens"
    name: str = setting(plain_name(), "what the run's folder and tables call it")
    path: str | None = setting(optional(text()), "its folder, or a pattern of files; null: in LAWA_DATA, then in data/")
    column: str | None = setting(optional(text()), "the column of text; null: `text`, else the only one of text")
    tokenizer: str = setting(one_of(*NAMES), "bytes, GPT-2's BPE, GPT-NeoX's, or a tokenizer.json")
    tokenizer_path: str | None = setting(
        optional(text()), "a tokenizer.json, or a folder that holds the tokenizer's files"
    )

    def open(self, context: int) -> Blocks:
        tokenizer = load_tokenizer(self.tokenizer, self.tokenizer_path)
        place = self.path if self.path and is_pattern(self.path) else find(self.name, self.path, self.name, (), GET)
        return open_documents(files_at(place), self.column, tokenizer, context, self.name)
