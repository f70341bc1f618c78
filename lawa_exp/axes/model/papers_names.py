"""What the papers call a model, by model.name: a plan shows it next to the true number of parameters."""

from __future__ import annotations

PAPERS_NAMES = {
    "gpt2_small": "125M in Sanyal et al.",
    "gpt2_medium": "335M in Sanyal et al.",
    "gpt2_large": "770M in Sanyal et al.",
    "pythia_14m": "Pythia 14M",
    "pythia_31m": "Pythia 31M",
    "pythia_70m": "Pythia 70M",
    "pythia_160m": "Pythia 160M",
    "pythia_410m": "Pythia 410M",
    "pythia_1b": "Pythia 1B",
    "pythia_1.4b": "Pythia 1.4B",
    "pythia_2.8b": "Pythia 2.8B",
    "pythia_6.9b": "Pythia 6.9B",
    "pythia_12b": "Pythia 12B",
    "roberta_base": "RoBERTa-base, 125M in Liu et al.",
    "transformer_lm_wiki103": "247M in fairseq's README",
    "resnet34": "ResNet-34, 21.8M in torchvision for ImageNet",
    "resnet50": "ResNet-50, 25.6M in torchvision for ImageNet",
}
