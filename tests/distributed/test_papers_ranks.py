"""The papers' models on two ranks, replicated and sharded, train what one rank trains."""

from pathlib import Path

import pytest
from helpers import rows, run, run_all

pytestmark = pytest.mark.distributed

RECORDED = Path(__file__).parents[1] / "fidelity" / "recorded" / "fairseq" / "data"
SMALL = [
    *("model.layers=2", "model.width=16", "model.heads=2", "batch.size=8", "trainer.micro_batch=2", "steps=6"),
    *("lr.warmup_steps=2", "evaluate.every=3", "evaluate.samples=12", "evaluate.batch_size=3", "trainer.threads=1"),
    *("logger.every=1", "avg=[lawa,ema]", "k=2", "spacing=3"),
]
MODELS = {
    "pythia": ["model=pythia_14m", "dataset=pydocs", "model.vocab_size=256", "model.context=32"],
    "roberta": [
        *("model=roberta_base", "model.vocab_size=null", "model.context=48", f"dataset.path={RECORDED}"),
        *("model.dropout=0", "model.attention_dropout=0", "lr.horizon=null"),
    ],
    "adaptive": [
        *("model=transformer_lm_wiki103", "dataset=pydocs", "model.vocab_size=null", "model.cutoffs=[40,100]"),
        *("model.hidden=32", "model.context=32", "lr.peak=0.1", "model.dropout=0", "model.attention_dropout=0"),
        *("model.activation_dropout=0", "model.softmax_dropout=0"),
    ],
}


@pytest.mark.parametrize("model", MODELS)
def test_one_and_two_ranks(model: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    asked = [*MODELS[model], *SMALL]
    one = run(*asked, f"run_dir={tmp_path / 'one'}", warm=True)
    assert one.returncode == 0, one.stderr
    expected = rows(tmp_path / "one")
    assert len(expected) == 6 + 3 + 2 + 1 and len({r["loss"] for r in expected}) == len(expected)
    done = run_all(tmp_path, 2, {kind: [*asked, f"trainer={kind}"] for kind in ("ddp", "fsdp")})
    for kind, two in done.items():
        assert two.returncode == 0 and "2 rank(s) x 2 x 2" in two.stdout, two.stdout + two.stderr
        found = rows(tmp_path / kind)
        assert [(r["step"], r["weights"]) for r in found] == [(r["step"], r["weights"]) for r in expected]
        assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in expected], rel=1e-5), kind
