#!/bin/sh
# python.sh REQUIREMENTS TOOL [ARGUMENTS]: find a suitable Python; with it, bootstrap.py runs scripts/tools/TOOL in .venv.
scripts=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) || exit
venv=$scripts/../.venv

# suits PYTHON: whether it is there, new enough, and able to make an environment.
suits() { "$1" -c 'import sys, ensurepip, ssl, venv; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; }

# run_with PYTHON ARGUMENTS: returns only if that Python does not suit. SIGINT is ignored until bootstrap.py handles it,
# so that Python prints no traceback when it comes in between.
run_with() {
    suits "$1" || return
    candidate=$1
    shift
    trap '' INT
    exec "$candidate" "$scripts/bootstrap.py" "$@"
}

if [ -n "${PYTHON-}" ] && ! suits "$PYTHON"; then
    found=$("$PYTHON" -c 'import sys; print("Python", sys.version.split()[0])' 2>&1 | tail -n 1)
    echo "ollama-auth: PYTHON=$PYTHON is not Python 3.12 or newer with venv and ensurepip (${found:-it says nothing});" \
        "name another one, or unset PYTHON" >&2
    exit 1
fi
# A finished environment needs no search. 3.13 comes before 3.14 because it is what the tests run on.
[ -f "$venv/installed" ] && run_with "$venv/bin/python" "$@"
run_with "${PYTHON:-python3.13}" "$@"
for version in 3.13 3.14 3.12; do
    for python in "python$version" \
        "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version"*/bin/python \
        "/opt/homebrew/opt/python@$version/bin/python$version" \
        "/usr/local/opt/python@$version/bin/python$version" \
        "/home/linuxbrew/.linuxbrew/opt/python@$version/bin/python$version" \
        "/Library/Frameworks/Python.framework/Versions/$version/bin/python$version" \
        "$HOME/.local/share/uv/python/cpython-$version"*/bin/python; do
        run_with "$python" "$@"
    done
done
for python in python3 python; do run_with "$python" "$@"; done

cat >&2 <<'END'
ollama-auth: no Python 3.12 or newer that can make a virtual environment was found.
Install one (from python.org, Homebrew, uv or pyenv; on Debian and Ubuntu also: apt install python3-venv),
or name the one to use: PYTHON=/path/to/python3
END
exit 1
