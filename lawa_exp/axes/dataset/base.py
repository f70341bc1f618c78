"""What the settings of data sets have unless they say otherwise."""

from __future__ import annotations

from typing import ClassVar


class BaseSettings:
    """inputs: what the data set holds, as models take it: tokens, masked tokens or images."""

    inputs: ClassVar[str]
    name: str
    path: str | None = None  # the file or folder; None: in the usual places, or it is embedded
    tokenizer: str | None = None  # that makes its tokens, where the settings say it; see `tokenizers.tokenizer_of`
    tokenizer_path: str | None = None  # the folder of its vocabulary files
    image_size: int | None = None  # what images are scaled to, in pixels
