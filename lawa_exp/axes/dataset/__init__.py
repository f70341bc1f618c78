"""The data sets: a name and the settings of each, without torch; what they open is a `seams.dataset.Dataset`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lawa_exp.config.tables import Table

if TYPE_CHECKING:
    from lawa_exp.seams.dataset import DatasetSettings

DATASETS: Table[DatasetSettings] = Table(
    __name__,
    pydocs="text:PydocsSettings",
    text="text:TextSettings",
    hf="hf:HfSettings",
    tokens="tokens:TokensSettings",
    openwebtext="tokens:OpenWebTextSettings",
    digits="digits:DigitsSettings",
    mnist="image_files:MnistSettings",
    fashion_mnist="image_files:FashionMnistSettings",
    cifar10="image_files:Cifar10Settings",
    cifar100="image_files:Cifar100Settings",
    image_folder="image_folder:ImageFolderSettings",
    cifar10_jpeg="image_folder:Cifar10JpegSettings",
    masked_lm="masked:MaskedLMSettings",
    pydocs_mlm="masked:PydocsMLMSettings",
    words="words:WordsSettings",
    arrays="image_files:ArraysSettings",
    custom="custom:CustomDataset",
)
