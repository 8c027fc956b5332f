#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up, builds and tests.
#
#   bash scripts/test.sh         all C++ and Python tests
#   bash scripts/test.sh --all   also lint, the stubs, both sanitizers and the wheel; CI=true too
#
# Every check runs even if one before it failed; the exit status is 0 only if all passed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

all=false
case "${1:-}" in
  --all) all=true ;;
  "") [[ "${CI:-}" != true ]] || all=true ;;
  *)
    echo "test.sh: unknown argument '$1'; allowed: --all" >&2
    exit 2
    ;;
esac

if $all; then
  bash scripts/setup.sh --lint || exit 1
else
  bash scripts/setup.sh || exit 1
fi
# shellcheck source=scripts/build_env.sh
source scripts/build_env.sh

failed=()
check() {
  local name="$1" start=$SECONDS
  shift
  printf '\n==== %s\n' "$name"
  "$@" || failed+=("$name")
  echo "==== $name took $((SECONDS - start)) s"
}

sanitized_tests() {
  local -a without_randomization=()
  hybridgen_build "$1" || return 1
  # Where the kernel randomizes addresses strongly, g++ 12's thread sanitizer cannot start.
  if ! "build-$1/tests/cpp/core_tests" --gtest_list_tests >/dev/null 2>&1; then
    without_randomization=(setarch -R)
  fi
  "${without_randomization[@]}" ctest --preset "$1"
}

# The wheel holds all that `import hybridgen` needs, wherever it is installed.
wheel() {
  local folder
  folder="$(mktemp -d)"
  # shellcheck disable=SC2064
  trap "rm -rf '$folder'" RETURN
  # The CUDA sources are compiled by the build of the tests.
  python -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps \
    --config-settings=build-dir=build-wheel \
    --config-settings=cmake.define.HYBRIDGEN_CUDA=OFF -w "$folder" . &&
    python -m pip install -q --disable-pip-version-check --no-deps --target "$folder/site" \
      "$folder"/hybridgen-*.whl &&
    (cd / && PYTHONPATH="$folder/site" python -c "
import hybridgen
assert hybridgen.__file__.startswith('$folder/site'), hybridgen.__file__
print('wheel imports:', hybridgen.__version__)")
}

if $all; then
  check "lint" bash scripts/lint.sh
  check "stubs" bash scripts/build_stubs.sh --check
  check "wheel" wheel
  check "C++ tests, address and undefined behaviour sanitizers" sanitized_tests asan
  check "C++ tests, thread sanitizer" sanitized_tests tsan
fi
check "C++ tests" ctest --preset default
check "Python tests" python -m pytest

if ((${#failed[@]} > 0)); then
  printf 'failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
