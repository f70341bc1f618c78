"""Configurations: entries that share a training, averagers from outside by their ids, runs of before watches."""

from pathlib import Path

import pytest
import torch
from training import WORDS

from lawa_exp.averaging.custom import CustomSettings
from lawa_exp.axes.logger.wandb.settings import WandbLogger
from lawa_exp.launch.compose import compose, read
from lawa_exp.runs.choices import config_from, config_to
from lawa_exp.runs.merge import merge
from lawa_exp.runs.prepare import Prepared, prepare
from lawa_exp.system.distributed import Ranks
from lawa_exp.system.errors import UserError


def prepared(*words: str) -> Prepared:
    ((values, overrides),), _ = compose([*WORDS, *words])
    return prepare(*read(values, overrides), torch.device("cpu"), Ranks())


@pytest.mark.parametrize("swapped", [False, True])
def test_entries_that_share_a_training_have_the_watches_of_all(swapped: bool) -> None:
    entries = [prepared("trainer.micro_batch=2", f"watch={watch}") for watch in ("[]", "[noise_scale]")]
    assert entries[0].trajectory == entries[1].trajectory
    together = merge(entries[::-1] if swapped else entries)
    assert [name for name, _ in together.config.watch] == ["noise_scale"]
    with pytest.raises(UserError, match=r"logger\.every is 10 and 5: choose one"):
        merge([entries[0], prepared("trainer.micro_batch=2", "logger.every=5")])


def test_two_averagers_from_outside_have_two_ids_and_one_has_one() -> None:
    def id_of(**args: object) -> str:
        return CustomSettings("mine:F", args, "0123456789").id

    assert len({id_of(a=1, b=2), id_of(a="1-b2"), id_of(a="1", b=2), id_of(a=1, b="2")}) == 4
    assert id_of(a=1, b=2) == id_of(b=2, a=1)


def test_a_run_of_when_there_was_one_logger_is_read(tmp_path: Path) -> None:
    written = {"trajectory_id": "0123456789ab", **config_to(prepared().config)}
    for value, watches in ((False, []), (True, ["noise_scale"])):
        older = {**written, "logger": {"kind": "jsonl", "every": 7, "noise_scale": value}}
        assert [name for name, _ in config_from(older).watch] == watches
        assert config_from(older).logger.every == 7 and not config_from(older).loggers
    of_wandb = {"mode": "offline", "project": "p", "entity": None, "finish_timeout": 30}
    ((name, logger),) = config_from({**written, "logger": {"kind": "wandb", "every": 7, **of_wandb}}).loggers
    assert name == "wandb" and logger == WandbLogger(30, "offline", "p", None, False)
