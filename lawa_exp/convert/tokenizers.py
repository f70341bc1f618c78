"""Our tokenizers as the files that transformers opens: tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lawa_exp.axes.dataset.fairseq import SPECIAL, read_dictionary
from lawa_exp.axes.dataset.tokenizers import (
    END_OF_TEXT,
    find_gpt2,
    find_json,
    find_neox,
    read_tokenizer,
    read_with_ids,
    symbols,
    vocabulary,
)
from lawa_exp.system.errors import UserError
from lawa_exp.system.files import LARGE, read_json

MASK = "<mask>"


@dataclass(frozen=True)
class Carried:
    """files: contents by name; vocab_size: ids are below it; end_of_text: its id, None where there is none."""

    files: dict[str, object]
    vocab_size: int
    end_of_text: int | None


def carried(name: str | None, path: str | None, context: int) -> Carried | None:
    """gpt2, neox, bytes or json, from its files in `path` (None: where they are looked for); None for any other.

    UserError as in `lawa_exp.axes.dataset.tokenizers.load_tokenizer`.

    context: the longest that the model takes, in tokens.
    """
    if name == "neox":
        file = find_neox(path)
        whole = read_tokenizer(file, name)  # UserError where it is damaged
        return Carried(_files(read_json(file), context, _ends()), whole.vocab_size, whole.end_of_text)
    if name == "json":
        file = find_json(path)
        own, ids = read_with_ids(file, name)
        end = next((token for token, id in ids.items() if id == own.end_of_text), None)
        files = _files(_plain(read_json(file, LARGE)), context, _ends(end) if end else {})
        return Carried(files, own.vocab_size, own.end_of_text)
    if name == "gpt2":
        ids, merges = vocabulary(path)
        described = _byte_pairs(ids, merges, {END_OF_TEXT: ids[END_OF_TEXT]}, regex=True)
        return Carried(_files(described, context, _ends()), len(ids), ids[END_OF_TEXT])
    if name == "bytes":
        ids = {symbol: byte for symbol, byte in symbols().items()}
        return Carried(_files(_byte_pairs(ids, [], {}, regex=False), context, {}), len(ids), None)
    return None


def carried_roberta(path: str | None, data: str | None, context: int, vocab_size: int) -> Carried | None:
    """GPT-2's byte-level BPE, its tokens numbered by a dictionary of fairseq's, in <s> and </s>.

    The dictionary is that of `data`, a folder of `fairseq-preprocess`, else that of GPT-2's files, `path`.
    None where one of them is missing, the dictionary is of other words, or the model has another vocabulary.
    """
    try:
        folder = find_gpt2(path)
    except UserError:
        return None
    places = [*([Path(data) / "dict.txt"] if data else []), folder / "dict.txt"]
    dictionary = next((place for place in places if place.is_file()), None)
    if dictionary is None:
        return None
    numbers = read_dictionary(dictionary)
    numbers |= {MASK: len(numbers)} if MASK not in numbers else {}
    ids, merges = vocabulary(str(folder))
    if len(numbers) != vocab_size or any(str(id) not in numbers for token, id in ids.items() if token != END_OF_TEXT):
        return None
    token_of = {str(id): token for token, id in ids.items()}
    named = {token_of.get(symbol, symbol): number for symbol, number in numbers.items()}
    special = {token: named[token] for token in (*SPECIAL, MASK)}
    described = _byte_pairs(named, merges, special, regex=True)
    around = {"sep": ["</s>", named["</s>"]], "cls": ["<s>", named["<s>"]]}
    described["post_processor"] = {
        "type": "RobertaProcessing",
        **around,
        "trim_offsets": True,
        "add_prefix_space": False,
    }
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    tokens |= {"unk_token": "<unk>", "pad_token": "<pad>", "mask_token": MASK}
    return Carried(_files(described, context, tokens), len(named), named["</s>"])


def _ends(token: str = END_OF_TEXT) -> dict[str, str]:
    return {"eos_token": token, "bos_token": token}


def _plain(described: dict[str, object]) -> dict[str, object]:
    """A tokenizer.json that gives the tokens which a training saw: nothing around, cut off or filled up."""
    around = described.get("post_processor")
    keeps = isinstance(around, dict) and around.get("type") == "ByteLevel"
    return {**described, "truncation": None, "padding": None, "post_processor": around if keeps else None}


def _files(described: dict[str, object], context: int, tokens: dict[str, str]) -> dict[str, object]:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, **tokens}
    return {"tokenizer.json": described, "tokenizer_config.json": settings}


def _byte_pairs(ids: dict[str, int], merges: list[str], special: dict[str, int], regex: bool) -> dict[str, object]:
    """The content of tokenizer.json. regex: text is cut into GPT-2's pieces first."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": id, "content": token, **plain, "lstrip": token == MASK} for token, id in special.items()
        ],
        "pre_tokenizer": {**byte_level, "use_regex": regex},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": ids,
            "merges": merges,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
        },
    }
