#!/usr/bin/env bash
# fairseq 0.12.2 in an environment of its own: `launch/fairseq_env.sh [DIR]`, by default .fairseq in the current folder.
# It needs Python 3.10 (PYTHON310=COMMAND names one), a C++ compiler, and from PyPI about 5 GB. The pins are what
# fairseq can live with: its Hydra and OmegaConf carry metadata that pip refuses from 24.1 on, and it uses names that
# numpy 2 and later torch no longer have. Its own C++ extensions for torch, which nothing here uses, are left out: the
# source archive on PyPI lacks some of their files, and pip builds it apart, where there is no torch.
set -euo pipefail

folder=${1:-.fairseq}
python=${PYTHON310:-python3.10}
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 10))' 2>/dev/null; then
    echo "error: $python is not Python 3.10, which fairseq 0.12.2 needs: name one with PYTHON310=COMMAND" >&2
    exit 2
fi
"$python" -m venv "$folder"
install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
install "pip<24.1"
install "torch==2.2.2" "numpy<2" "fairseq==0.12.2"
# Not in the package: fairseq's own script for averages of checkpoints. The tests that compare with it need it.
script=https://raw.githubusercontent.com/facebookresearch/fairseq/v0.12.2/scripts/average_checkpoints.py
"$folder/bin/python" -c 'import sys, urllib.request; urllib.request.urlretrieve(*sys.argv[1:])' \
    "$script" "$folder/average_checkpoints.py" 2>/dev/null ||
    echo "note: $script could not be fetched; name a copy with FAIRSEQ_AVERAGE=FILE when testing" >&2
"$folder/bin/python" -c 'import fairseq, torch; print(f"fairseq {fairseq.__version__}, torch {torch.__version__}")'
