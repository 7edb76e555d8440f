# Makes the virtual environment VENV (default: .venv) once and installs the pinned packages of the file $1 into it: for
# requirements.txt those of requirements-gpu.txt where the machine has an NVIDIA GPU.
# Sourced by the other scripts; leaves the environment's interpreter in PYTHON. BASE_PYTHON names the Python to make it
# with (default: python3).
VENV=${VENV:-.venv}
PYTHON=$VENV/bin/python
base=$PYTHON remedy="remove $VENV, then "
[ -x "$VENV/bin/pip" ] || { base=${BASE_PYTHON:-python3} remedy=; }  # pip comes last: without it, a killed set-up
version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null || true)
case $version in
    3.11 | 3.12 | 3.13) ;;
    *) echo "setup: $base is ${version:+Python }${version:-not there}, but Python 3.11, 3.12 or 3.13 is needed" \
            "(TensorFlow 2.21 has no wheel for 3.14); ${remedy}run: BASE_PYTHON=python3.12 bash $0" >&2
        exit 1 ;;
esac
if [ "$base" != "$PYTHON" ]; then
    echo "setup: making $VENV with Python $version"
    "$base" -m venv "$VENV"
fi
packages=$1
if [ "$1" = requirements.txt ] && nvidia-smi -L > /dev/null 2>&1; then
    packages=requirements-gpu.txt
fi
wanted=$(cat requirements.txt "$packages" | cksum)
stamp=$VENV/installed-${packages//\//-}
if [ "$(cat "$stamp" 2> /dev/null)" != "$wanted" ]; then
    echo "setup: installing $packages"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$packages"
    echo "$wanted" > "$stamp"
fi
