"""Variables of the environment mean what they mean elsewhere; what no tool could read is one line."""

import pytest

from lawa_exp.axes.logger.wandb.settings import mode_of, project_of
from lawa_exp.system.distributed import start_device
from lawa_exp.system.environment import number, ranks
from lawa_exp.system.errors import UserError
from lawa_exp.system.machine import default_threads, this_job
from lawa_exp.system.slurm_step import join_ranks

RANKS = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
RANKS |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
STEP = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
STEP |= {"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_STEP_NODELIST": "node[1-2]"}
STEP |= {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANKS, *STEP, "OMP_NUM_THREADS", "SLURM_RESTART_COUNT", "SLURM_ARRAY_JOB_ID", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)


def test_ranks_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ranks() == (0, 1, 0, 1)
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    assert ranks() == (3, 4, 1, 2)


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"WORLD_SIZE": "four"}, "WORLD_SIZE=four: expected an integer of at least 1"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1"),
        ({"RANK": ""}, "WORLD_SIZE=4: RANK is not set"),
        ({"RANK": "4"}, "RANK=4: expected less than the 4 ranks"),
        ({"RANK": "x"}, "RANK=x"),
        ({"LOCAL_RANK": "2"}, "LOCAL_RANK=2: expected less than the 2"),
        ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8: expected at most"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http"),
        ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999: expected a port"),
    ],
)
def test_ranks_that_cannot_be_are_one_line(changed: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**RANKS, **changed}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        start_device("cpu")


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"SLURM_STEP_NUM_TASKS": "many"}, "SLURM_STEP_NUM_TASKS=many: expected an integer"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
        ({"SLURM_NODEID": "5"}, "SLURM_NODEID=5: SLURM_STEP_TASKS_PER_NODE names 2 nodes"),
        ({"SLURM_JOB_ID": "x"}, "SLURM_JOB_ID=x"),
    ],
)
def test_a_step_that_cannot_be_is_one_line(changed: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        join_ranks({**STEP, **changed})
    joined = dict(STEP)
    join_ranks(joined)
    assert (joined["RANK"], joined["LOCAL_WORLD_SIZE"], joined["MASTER_ADDR"]) == ("3", "2", "node1")


def test_threads_and_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")  # OpenMP: of nested levels
    assert default_threads(1) == 3
    for value in ("abc", "0", "-2"):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        with pytest.raises(UserError, match=f"OMP_NUM_THREADS={value}: expected an integer of at least 1"):
            default_threads(1)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "twice")
    with pytest.raises(UserError, match="SLURM_RESTART_COUNT=twice"):
        this_job()
    assert number("SLURM_JOB_ID", 5) == 5


def test_w_and_b_is_told_by_its_own_variables_where_the_command_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb's documentation of its environment variables; `dryrun` and `run` are its older names."""
    assert (mode_of(None), project_of(None)) == ("online", "lawa_exp")
    told = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "off"}
    for value, mode in told.items():
        monkeypatch.setenv("WANDB_MODE", value)
        assert mode_of(None) == mode and mode_of("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "junk")
    with pytest.raises(UserError, match="WANDB_MODE=junk: expected one of online"):
        mode_of(None)
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert mode_of(None) == "off"
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    assert (project_of(None), project_of("given")) == ("mine", "given")
