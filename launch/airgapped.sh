#!/usr/bin/env bash
# Collects wheels for a machine without a network that has torch, torchvision and numpy already:
#
#     launch/airgapped.sh wheels [PYTHON_VERSION [PLATFORM]]     # here: default 3.12, manylinux2014_x86_64
#     bash wheels/install.sh [VENV]                              # there: into VENV (it sees the system's torch), or as it is
#
# The versions are those of constraints.txt. What only has a source distribution is built here; it must be pure Python.
set -euo pipefail
out=${1:?the folder for the wheels}
version=${2:-3.12}
platform=${3:-manylinux2014_x86_64}
root=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "$out"
# What a training, its averages and the tests need besides torch, torchvision and numpy.
needed="hydra-core omegaconf PyYAML tqdm matplotlib contourpy cycler fonttools kiwisolver packaging pyparsing
    python-dateutil six pillow tiktoken regex requests urllib3 idna certifi charset-normalizer isal submitit cloudpickle
    typing_extensions safetensors schedulefree pytest iniconfig pluggy pygments"
pinned=$(for name in $needed; do grep -i "^$name==" "$root/constraints.txt" || echo "$name"; done)
python3 -m pip download --quiet --no-deps --dest "$out" --only-binary=:all: --python-version "$version" \
    --platform "$platform" --platform manylinux_2_28_x86_64 --platform any $pinned
python3 -m pip wheel --quiet --no-deps --wheel-dir "$out" "$(grep -i '^antlr4-python3-runtime==' "$root/constraints.txt")"
python3 -m pip wheel --quiet --no-deps --wheel-dir "$out" "$root"
cat > "$out/install.sh" <<'INSTALL'
#!/usr/bin/env bash
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=python3
if [ $# -gt 0 ]; then
    python3 -m venv --system-site-packages "$1"
    python=$1/bin/python
fi
$python -m pip install --quiet --no-index --no-deps "$here"/*.whl
$python -c 'import torch, lawa_exp.average; print("lawa_exp with torch", torch.__version__, "is installed")'
INSTALL
du -sh "$out"
