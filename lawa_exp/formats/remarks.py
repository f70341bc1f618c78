"""What the output of `average` says of tensors that are no means, and of what else is in the files."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from lawa_exp.formats.constants import RUNNING
from lawa_exp.formats.stored import Writer

SHOWN = 5  # names in a line


def remarks(
    copied: Mapping[str, int],
    left_out: Iterable[str],
    unread: Iterable[str],
    writers: Collection[Writer],
    is_mean: bool,
) -> list[str]:
    """A line each. copied: tensors that are the last input's, by the reason; left_out: keys of second copies.

    unread: what else is in the last input's folder. is_mean: whether any average is of several inputs.
    """
    lines = []
    counts = [f"{number} tensor{'s' * (number > 1)} {reason}" for reason, number in copied.items() if number]
    if no_tensors := dict.fromkeys(name for writer in writers for name in writer.others):
        number = len(no_tensors)
        counts.append(f"{number} entr{'ies' if number > 1 else 'y'} without a tensor ({_listed(no_tensors)})")
    if counts:
        lines.append(f"copied from the last input, not averaged: {', '.join(counts)}")
    if copied.get(RUNNING) and is_mean:
        lines.append(
            "note: the running statistics are not those of the averaged weights: compute them anew from training data "
            "before you evaluate these (torch.optim.swa_utils.update_bn)"
        )
    if names := dict.fromkeys(left_out):
        lines.append(
            "left out, as second copies of the weights, which could be loaded for the average (the last input still "
            f"has them): {', '.join(names)}"
        )
    if emptied := dict.fromkeys(what for writer in writers for what in writer.emptied):
        lines.append(f"not taken over from the last input, as it belongs to its own weights: {', '.join(emptied)}")
    if others := dict.fromkeys(unread):
        lines.append(
            "not in the output, as nothing in the last input's folder says that it is a part of the model: "
            f"{_listed(others)}"
        )
    if kept := dict.fromkeys(key for writer in writers for key in writer.kept):
        lines.append(f"other tensors, which are as the last input has them (--key averages others): {_listed(kept)}")
    if carried := dict.fromkeys(name for writer in writers for name in writer.carried):
        lines.append(f"objects that are carried along as they are, unread and not run: {_listed(carried)}")
    return lines


def _listed(names: Iterable[str]) -> str:
    texts = [ascii(name)[1:-1] for name in names]
    return ", ".join(texts if len(texts) <= SHOWN else [*texts[: SHOWN - 1], f"... ({len(texts)} in all)"])
