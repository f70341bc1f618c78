"""An average loads where its inputs did: made, averaged and opened again by the libraries that people have.

`pip install 'lawa_exp[interop]'`; what is not installed is skipped.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from averaged_files import average, refused
from torch import Tensor, nn

pytestmark = pytest.mark.slow  # these libraries take long to import


def mean(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, Tensor]:
    means = {}
    for name, tensor in second.items():
        is_mean = tensor.is_floating_point() and not name.endswith(("running_mean", "running_var"))
        means[name] = ((first[name].double() + tensor.double()) / 2).to(tensor.dtype) if is_mean else tensor
    return means


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def changed(model: nn.Module) -> dict[str, Tensor]:
    """Moves all weights; a copy of the state dict."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_transformers_folders_whole_and_sharded(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=16)
    for size in ("50GB", "20KB"):
        model = transformers.GPT2LMHeadModel(config)
        states = []
        for i in (1, 2):
            states.append(changed(model))
            model.save_pretrained(tmp_path / size / f"checkpoint-{i}", max_shard_size=size)
        average(tmp_path / size / "checkpoint-[12]", "--out", tmp_path / size / "out")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / size / "out")
        assert_same(loaded.state_dict(), mean(*states))
        assert loaded.lm_head.weight is loaded.transformer.wte.weight


@pytest.mark.parametrize("listed", ["folders", "files", "a Trainer's folder"])
def test_peft_adapters(listed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=32, vocab_size=64, n_positions=16)
    torch.manual_seed(0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")

    def base() -> nn.Module:
        return transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")

    lora = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM")
    model, adapters = peft.get_peft_model(base(), lora), []
    for i in (1, 2):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_()
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{i}")
        adapters.append({n: t.clone() for n, t in peft.get_peft_model_state_dict(model).items()})
    inputs = {
        "folders": [tmp_path / "run" / "checkpoint-1", tmp_path / "run" / "checkpoint-2"],
        "files": [tmp_path / "run" / f"checkpoint-{i}" / "adapter_model.safetensors" for i in (1, 2)],
        "a Trainer's folder": ["--trajectory", tmp_path / "run", "--k", 2],
    }[listed]
    assert "merge_and_unload" in refused(capsys, *inputs, "--out", tmp_path / "out")
    average(*inputs, "--each-factor", "--out", tmp_path / "out")
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path / "out")
    assert_same(peft.get_peft_model_state_dict(loaded), mean(*adapters))
    # What the refusal advises: the mean of the merged models.
    merged = []
    for i in (1, 2):
        whole = peft.PeftModel.from_pretrained(base(), tmp_path / "run" / f"checkpoint-{i}").merge_and_unload()
        merged.append({n: t.clone() for n, t in whole.state_dict().items()})
        whole.save_pretrained(tmp_path / "merged" / f"checkpoint-{i}")
    average(tmp_path / "merged" / "checkpoint-[12]", "--out", tmp_path / "whole")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert_same(loaded.state_dict(), mean(*merged))


def test_accelerates_second_model(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    accelerator, states = accelerate.Accelerator(cpu=True), []
    models = [accelerator.prepare(nn.Linear(2, 3)), accelerator.prepare(nn.Linear(3, 1))]
    for i in (1, 2):
        states.append([changed(model) for model in models])
        accelerator.save_state(tmp_path / f"checkpoint_{i}")
    average(tmp_path / "checkpoint_[12]", "--out", tmp_path / "out")
    for number, ending in enumerate(("", "_1")):
        found = safetensors.torch.load_file(tmp_path / "out" / f"model{ending}.safetensors")
        assert_same(found, mean(states[0][number], states[1][number]))


def test_sentence_transformers_folders(tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    tokenizer = modules.tokenizer.WhitespaceTokenizer(["a", "b"])
    words = modules.WordEmbeddings(tokenizer, torch.randn(2, 4).numpy())
    model = library.SentenceTransformer(modules=[words, modules.Pooling(4), modules.Dense(4, 2)], device="cpu")
    states = []
    for i in (1, 2):
        states.append(changed(model))
        model.save(str(tmp_path / f"checkpoint-{i}"))
    average(tmp_path / "checkpoint-1", tmp_path / "checkpoint-2", "--out", tmp_path / "out")
    assert_same(library.SentenceTransformer(str(tmp_path / "out"), device="cpu").state_dict(), mean(*states))


def test_timm_folders(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    from timm.models import save_for_hf

    model, states = timm.create_model("test_vit", num_classes=10), []
    for i in (1, 2):
        states.append(changed(model))
        save_for_hf(model, tmp_path / f"checkpoint-{i}", safe_serialization=True)
    average(tmp_path / "checkpoint-[12]", "--out", tmp_path / "out")
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    assert_same(loaded.state_dict(), mean(*states))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_classes"] == 10


def test_torchvision_reference_checkpoints(tmp_path: Path) -> None:
    """As its references/classification/train.py saves them."""
    torchvision = pytest.importorskip("torchvision")
    model, states = torchvision.models.mobilenet_v3_small(num_classes=5), []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ema = torch.optim.swa_utils.AveragedModel(model)
    for i in (1, 2):
        states.append(changed(model))
        content = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": i}
        torch.save(content | {"model_ema": ema.state_dict()}, tmp_path / f"model_{i}.pth")
    average(tmp_path / "model_[12].pth", "--out", tmp_path / "out")
    content = torch.load(tmp_path / "out" / "model_2.pth", weights_only=True)
    loaded = torchvision.models.mobilenet_v3_small(num_classes=5)
    loaded.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    assert_same(loaded.state_dict(), mean(*states))
    assert "model_ema" not in content


@pytest.mark.filterwarnings("ignore")
def test_lightning_loads_with_its_hyper_parameters(tmp_path: Path) -> None:
    """With what save_hyperparameters stores (pytorch-lightning #20058): a path, a partial, a module."""
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self, optimizer: functools.partial, folder: Path, loss: nn.Module) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = nn.Linear(3, 1)

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            return self.hparams.loss(self.layer(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return self.hparams.optimizer(self.parameters())

    def trainer(epochs: int) -> object:
        checkpoint = lightning.callbacks.ModelCheckpoint(tmp_path / "ck", save_top_k=-1)
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        return lightning.Trainer(max_epochs=epochs, callbacks=[checkpoint], **quiet)

    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 3), torch.randn(8, 1)), 4)
    module = Module(functools.partial(torch.optim.AdamW, lr=0.1), Path("/data"), nn.MSELoss())
    trainer(2).fit(module, data)
    files = sorted((tmp_path / "ck").iterdir())
    average(*files, "--out", tmp_path / "out")
    (made,) = (tmp_path / "out").iterdir()
    loaded = Module.load_from_checkpoint(made, weights_only=False)
    states = [torch.load(file, weights_only=False)["state_dict"] for file in files]
    assert_same(loaded.state_dict(), mean(*states))
    assert loaded.hparams.folder == Path("/data") and loaded.hparams.optimizer.keywords == {"lr": 0.1}
    trainer(3).fit(loaded, data, ckpt_path=made, weights_only=False)
