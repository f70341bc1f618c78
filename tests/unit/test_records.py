"""What shapes do not show comes from the weights' own record, and where the data of a run are may be said anew."""

import json
import shutil
from pathlib import Path

import pytest

from lawa_exp.convert.recorded import check_pythia, recorded
from lawa_exp.launch import compose
from lawa_exp.readout.__main__ import main as readout
from lawa_exp.storage.rows import read_rows
from lawa_exp.system.errors import UserError

TEXT = "To be, or not to be: that is the question.\n" * 200
WORDS = [
    *("model=gpt_tiny", "model.layers=2", "model.width=16", "model.heads=2", "model.context=16", "batch.size=4"),
    *("steps=4", "evaluate.every=2", "evaluate.samples=16", "avg=none", "trajectory.every=2", "save.every=4"),
    *("lr.warmup_steps=0", "trainer.threads=1", "dataset=text"),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a text of its own. Not to be changed."""
    root = tmp_path_factory.mktemp("run")
    (root / "here.txt").write_text(TEXT)
    assert compose.main([*WORDS, f"dataset.path={root / 'here.txt'}", f"run_dir={root / 'run'}"]) == 0
    return root / "run"


@pytest.mark.parametrize("source", ["", "trajectory/step_00000004"])
def test_weights_that_go_on_in_another_function_are_refused(
    run: Path, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two heads in place of four have the same shapes (karpathy/nanoGPT 190, huggingface/transformers 12004)."""
    data = f"dataset.path={run.parent / 'here.txt'}"
    asked = [
        *WORDS,
        data,
        f"init.from={run / source}",
        "init.optimizer=reset",
        f"run_dir={tmp_path / 'r'}",
        "plan=true",
    ]
    assert compose.main(asked) == 0
    capsys.readouterr()
    for other, there in (("heads=4", "2"), ("scale_attn_by_inverse_layer_idx=true", "false")):
        assert compose.main([*asked, f"model.{other}"]) == 2
        said = capsys.readouterr().err
        assert f"init.from={(run / source).resolve()} records {there}" in said and len(said.splitlines()) == 1, said


def test_a_read_out_of_snapshots_takes_the_record(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        str(run / "trajectory"),
        "--model",
        "gpt_tiny",
        "--dataset",
        "text",
        f"dataset.path={run.parent / 'here.txt'}",
    ]
    words += ["--k", "2", "--spacing", "2", "model.context=16", "model.heads=4"]
    assert readout(words) == 2
    assert "model.heads=4: the checkpoints of RUN=" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config, expected",
    [
        ({"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 8}, {"layers": 2, "heads": 4, "width": 8}),
        (
            {"model_type": "roberta", "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": 8},
            {"layers": 3, "heads": 2, "width": 8},
        ),
        ({"model_type": "resnet", "depths": [2, 2]}, {}),
    ],
)
def test_the_record_of_a_config_json(config: dict, expected: dict, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert recorded(tmp_path) == expected


def test_a_rotary_embedding_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8, "max_position_embeddings": 16}
    config = {"model_type": "gpt_neox", **sizes, "vocab_size": 9, "intermediate_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert recorded(tmp_path) == {"layers": 2, "heads": 2, "width": 8}
    for key, value in (
        ("rotary_emb_base", 500000),
        ("rotary_pct", 1.0),
        ("layer_norm_eps", 1e-6),
        ("hidden_act", "relu"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(UserError, match=f"{key}=.*not as in Pythia"):
            check_pythia(tmp_path)


def test_the_data_of_a_run_may_be_elsewhere_if_they_are_the_same(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    config = (copy / "config.yaml").read_text().replace(str(run.parent), "/nowhere")
    (copy / "config.yaml").write_text(config)
    (copy / ".checksums").unlink()
    (tmp_path / "same.txt").write_text(TEXT)
    (tmp_path / "other.txt").write_text(TEXT.upper())
    asked = [str(copy), "--k", "2", "--spacing", "2"]
    assert readout(asked) == 2 and "here.txt" in capsys.readouterr().err
    assert readout([*asked, f"dataset.path={tmp_path / 'other.txt'}"]) == 2
    assert "its content is not what" in capsys.readouterr().err
    assert readout([*asked, "model.heads=2"]) == 2
    assert "model.heads=2: a run has its own settings; dataset.path and" in capsys.readouterr().err
    assert readout([*asked, f"dataset.path={tmp_path / 'same.txt'}"]) == 0
    assert {r["weights"] for r in read_rows(copy / "readouts" / "lawa-k2-s2" / "metrics.jsonl")} >= {"lawa-k2-s2"}


def test_a_run_that_is_not_there_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert readout(["nowhere"]) == 2
    assert capsys.readouterr().err.startswith("error: RUN=nowhere: no such file or folder")
