#!/usr/bin/env bash
# A router in Python against an edge: tests/python/run.sh [the program; built if not given]
# Needs python3 (3.10 or newer, with venv) and a package index that pip can reach; writes into the target directory only.
set -euo pipefail
cd "$(dirname "$0")/../.."

target="${CARGO_TARGET_DIR:-$PWD/target}"
place="$target/python"
mkdir -p "$place"

if ! python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))'; then
    echo "tests/python/run.sh: python3 3.10 or newer with the module venv is needed (Debian: apt install python3-venv)" >&2
    exit 1
fi
# Kept until the versions change.
if ! cmp -s tests/python/requirements.txt "$place/installed.txt"; then
    rm -rf "$place/venv" "$place/installed.txt"
    python3 -m venv "$place/venv"
    "$place/venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --no-deps \
        -r tests/python/requirements.txt
    "$place/venv/bin/pip" check
    cp tests/python/requirements.txt "$place/installed.txt"
fi
rm -rf "$place/protocols"
mkdir "$place/protocols"
"$place/venv/bin/python" -m grpc_tools.protoc -I proto --python_out="$place/protocols" \
    --grpc_python_out="$place/protocols" device.proto router.proto

if [[ $# -gt 0 ]]; then
    MOORING="$(realpath "$1")"
else
    cargo build --locked --bin mooring
    MOORING="$(realpath "$target/debug/mooring")"
fi
export MOORING PYTHONPATH="$place/protocols" PYTHONDONTWRITEBYTECODE=1
"$place/venv/bin/python" tests/python/test_router.py
