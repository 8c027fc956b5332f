#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Writes what is made from the compiled module: its type stubs, python/hybridgen/_core.pyi, those of the
# option classes, python/hybridgen/config.pyi, and docs/api.md.
#
#   bash scripts/build_stubs.sh           write them
#   bash scripts/build_stubs.sh --check   write nothing; fail if the committed ones are out of date
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=scripts/build_env.sh
source scripts/build_env.sh

folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
pybind11-stubgen hybridgen._core -o "$folder" --exit-code >/dev/null
{
  echo "# SPDX-License-Identifier: Apache-2.0"
  cat "$folder/hybridgen/_core.pyi"
} >"$folder/_core.pyi"
# Formatted like the rest, so that the stubs do not depend on the generator's line breaks.
ruff check -q --fix-only --isolated --select I,F401,UP "$folder/_core.pyi"
ruff format -q --config pyproject.toml "$folder/_core.pyi"

python scripts/build_api.py "$@"
if [[ "${1:-}" == --check ]]; then
  if ! diff -u python/hybridgen/_core.pyi "$folder/_core.pyi"; then
    echo "build_stubs.sh: the stubs are out of date; run scripts/build_stubs.sh and commit" >&2
    exit 1
  fi
else
  cp "$folder/_core.pyi" python/hybridgen/_core.pyi
fi
