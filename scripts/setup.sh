# Makes the virtual environment VENV (.venv by default) and installs the pinned packages of the file $1 into it, once.
# Sourced by quickstart.sh and test.sh; leaves its interpreter in PYTHON.
VENV=${VENV:-.venv}
if [ ! -x "$VENV/bin/python" ]; then
    base=${BASE_PYTHON:-python3}
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "setup: $base is older than Python 3.11; name a later one: BASE_PYTHON=python3.12 bash $0" >&2; exit 1; }
    echo "setup: making $VENV"
    "$base" -m venv "$VENV"
fi
PYTHON=$VENV/bin/python
wanted=$(cat requirements.txt "$1" | cksum)
stamp=$VENV/installed-${1//\//-}
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "setup: installing $1"
    "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$1"
    echo "$wanted" > "$stamp"
fi
