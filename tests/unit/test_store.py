"""Files of tensors: checksums of pieces put together, and how tensors are shared out among files."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lawa_exp.storage.commit import verify
from lawa_exp.storage.safetensors import Kind, header_of, in_files, map_stored, write_tensors
from lawa_exp.storage.store import Piece, Rows, Store, _manifest
from lawa_exp.system.distributed import Ranks


def test_the_checksum_of_a_file_is_put_together_from_the_pieces_of_all_ranks() -> None:
    random = np.random.default_rng(0)
    pieces = [random.bytes(n) for n in (0, 1, 7, 0, 4096, 100_003, 1)]
    begins = np.cumsum([0, *map(len, pieces)]).tolist()
    written = [Piece(begin, len(p), zlib.crc32(p)) for begin, p in zip(begins, pieces, strict=False)]
    whole = b"".join(pieces)
    assert _manifest([{"f": written[::2]}, {"f": written[1::2]}]) == {
        "f": {"bytes": len(whole), "crc32": zlib.crc32(whole)}
    }
    with pytest.raises(AssertionError, match="nobody wrote the bytes from 8 to 4104"):
        _manifest([{"f": written[:4]}, {"f": written[5:]}])


def test_files_of_at_most_so_many_bytes() -> None:
    kinds = {name: Kind(torch.float32, (n,)) for name, n in {"c": 1, "a": 10, "b": 10, "large": 100, "z": 3}.items()}
    assert in_files("model", kinds, 544) == {"model.safetensors": ["a", "b", "c", "large", "z"]}
    several = in_files("model", kinds, 84)
    assert several == {
        "model-00001-of-00003.safetensors": ["a", "b", "c"],
        "model-00002-of-00003.safetensors": ["large"],
        "model-00003-of-00003.safetensors": ["z"],
    }
    assert in_files("model", {}, 1) == {"model.safetensors": []}


def test_the_header_says_where_tensors_are(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(2, 3), "a": torch.tensor([1, 2], dtype=torch.int8), "empty": torch.empty(0, 2)}
    write_tensors(tmp_path / "model.safetensors", tensors)
    header, begins = header_of({n: Kind(t.dtype, tuple(t.shape)) for n, t in tensors.items()})
    content = (tmp_path / "model.safetensors").read_bytes()
    assert content.startswith(header)
    for name, tensor in tensors.items():
        assert content[begins[name] :].startswith(tensor.numpy().tobytes())
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[n], tensors[n]) for n in tensors)


@pytest.mark.parametrize("shard_size", [10**9, 30])
def test_a_store_reads_rows_of_what_was_written_whole(tmp_path: Path, shard_size: int) -> None:
    tensors = {"mean|w": torch.arange(15.0).view(5, 3), "mean|b": torch.arange(3.0), "|seen": torch.tensor(4)}
    Store(shard_size=shard_size).commit(tmp_path / "step", {"averagers/ema": tensors}, {"state.json": "{}"})
    verify(tmp_path / "step")
    assert json.loads((tmp_path / "step" / "state.json").read_text()) == {}
    assert all(torch.equal(t, tensors[n]) for n, t in map_stored(tmp_path / "step", "averagers/ema").items())
    one_of_two = Store(Ranks(1, 2), {"w": Rows((5, 3), 3, 2), "b": Rows((3,), 2, 1)})
    found = one_of_two.read(tmp_path / "step", "averagers/ema", lambda name: name.rpartition("|")[2])
    assert found.keys() == tensors.keys()
    assert torch.equal(found["mean|w"], tensors["mean|w"][3:]) and torch.equal(found["mean|b"], torch.tensor([2.0]))
    assert found["|seen"] == 4
