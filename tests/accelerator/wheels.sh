#!/usr/bin/env bash
# Collects what a bare PyTorch image lacks to run fedhubert and `python -m tests.accelerator`: wheels for Python 3.12 on x86-64 Linux, in pieces of at
# most 55 MB, with INSTALL.sh, which joins and installs them without a network. torch, torchaudio and NVIDIA's packages are left out: the image has them.
# The peers minimal-hubert and s3prl go along without the packages that their models do not import.
#
#   tests/accelerator/wheels.sh DIR        (a new folder; needs pip and a network; PYTHON=python3.12 to name another interpreter)
set -euo pipefail
out=${1:?usage: tests/accelerator/wheels.sh DIR}
python=${PYTHON:-python3}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -e "$out" ] && [ -n "$(ls -A "$out")" ]; then
  echo "$out is not empty: name another folder" >&2
  exit 1
fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/wheels"

# What pyproject.toml wants, but for torch; scikit-learn for the probes, nvidia-ml-py for the card's load, huggingface-hub for minimal-hubert.
"$python" - "$root/pyproject.toml" >"$work/wanted" <<'PYTHON'
import re, sys, tomllib
with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
names = lambda wanted: [text for text in wanted if not re.match(r"torch(audio)?\b", text)]
print("\n".join([*names(project["dependencies"]), *project["optional-dependencies"]["eval"], "nvidia-ml-py", "huggingface-hub>=1.11"]))
PYTHON

# Two have no wheel in the registry: they are pure Python and are built here.
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$work/wheels" 'antlr4-python3-runtime==4.9.3' 's3prl==0.4.18'
for_there=(--only-binary=:all: --implementation cp --python-version 3.12 --abi cp312 --abi abi3 --abi none)
for tag in manylinux_2_28 manylinux_2_27 manylinux_2_26 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux_2_12 manylinux2010 manylinux_2_5 manylinux1 linux; do
  for_there+=(--platform "${tag}_x86_64")
done
"$python" -m pip download --quiet "${for_there[@]}" --find-links "$work/wheels" --dest "$work/wheels" --requirement "$work/wanted"
"$python" -m pip download --quiet "${for_there[@]}" --no-deps --dest "$work/wheels" 'minimal-hubert==0.0.8' 'spidr==0.2.0'
if compgen -G "$work/wheels/torch*" || compgen -G "$work/wheels/triton*" || compgen -G "$work/wheels/nvidia_c*"; then
  echo "a package wants torch by itself: leave it out, or its needs" >&2
  exit 1
fi

# One file of all, cut: a wheel may be larger than a piece.
tar -C "$work" --sort=name --mtime=@0 --owner=0 --group=0 -cf - wheels wanted | split --bytes=55MB --numeric-suffixes=1 - "$out/wheels.tar."
(cd "$out" && sha256sum wheels.tar.* >SHA256SUMS)
cat >"$out/INSTALL.sh" <<'INSTALL'
#!/usr/bin/env bash
# Joins the pieces beside this file, checks them, and installs the wheels without a network; what is there already stays, if it is new enough.
#   bash INSTALL.sh [PYTHON]               (default: python3; give a virtual environment's to install into it)
set -euo pipefail
python=${1:-python3}
if [[ $python == */* ]]; then python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python"); fi
cd "$(dirname "${BASH_SOURCE[0]}")"
sha256sum --check --quiet SHA256SUMS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat wheels.tar.* | tar -C "$work" -xf -
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_BREAK_SYSTEM_PACKAGES=1
"$python" -m pip install --no-index --find-links "$work/wheels" --requirement "$work/wanted"
# The peers ask for packages that their models do not need; without them the steps skip what is held against them.
"$python" -m pip install --no-index --find-links "$work/wheels" --no-deps minimal-hubert spidr s3prl || echo "no peers" >&2
"$python" -c 'import flwr, ray, hydra, omegaconf, soundfile, pydantic, rich, cryptography, sklearn; print("installed")'
INSTALL
echo "pieces in $out:"
(cd "$out" && du --bytes -- *)
