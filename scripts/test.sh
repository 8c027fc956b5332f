#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Sets up, builds and tests.
#
#   bash scripts/test.sh          all C++ and Python tests
#   bash scripts/test.sh --all    also lint, the stubs, the wheel, a program against an installation,
#                                 both sanitizers and an emulated machine with two memory nodes;
#                                 .ci/run is this
#   bash scripts/test.sh --long   the longer form of every test that has one (HYBRIDGEN_LONG=1)
#
# Every check runs even if one before it failed; the exit status is 0 only if all passed. A table at
# the end says what each took.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

all=false
for argument in "$@"; do
  case "$argument" in
    --all) all=true ;;
    --long) export HYBRIDGEN_LONG=1 ;;
    *)
      echo "test.sh: unknown argument '$argument'; allowed: --all, --long" >&2
      exit 2
      ;;
  esac
done

failed=()
table=()
check() {
  local name="$1" start=$SECONDS result=ok
  shift
  printf '\n==== %s\n' "$name"
  if ! "$@"; then
    result=FAILED
    failed+=("$name")
  fi
  table+=("$(printf '%-6s %5d s  %s' "$result" $((SECONDS - start)) "$name")")
  echo "==== ${table[-1]}"
}

summary() {
  printf '\n==== summary\n'
  printf '%s\n' "${table[@]}"
  printf '%-6s %5d s  %s\n' "" $SECONDS "all together"
  if ((${#failed[@]} > 0)); then
    printf 'failed: %s\n' "${failed[@]}" >&2
  fi
  ((${#failed[@]} == 0))
}

# tests/cpp/sanitized.sh says what the sanitizers leave out.
sanitized_folders() {
  case "$1" in
    asan) echo "${address_folders[@]}" ;;
    tsan) echo "${thread_folders[@]}" ;;
  esac
}

build_sanitized() {
  local -a folders targets=(all)
  if [[ -z "${HYBRIDGEN_LONG:-}" ]]; then
    read -ra folders <<<"$(sanitized_folders "$1")"
    targets=("${folders[@]/%/_tests}")
  fi
  hybridgen_build "$1" "${targets[@]}"
}

run_sanitized() {
  local -a labels=() without_randomization=()
  if [[ -z "${HYBRIDGEN_LONG:-}" ]]; then
    labels=(-L "^($(sanitized_folders "$1" | tr ' ' '|'))\$")
  fi
  # Where the kernel randomizes addresses strongly, g++ 12's thread sanitizer cannot start.
  if ! "build-$1/tests/cpp/runtime_tests" --gtest_list_tests >/dev/null 2>&1; then
    without_randomization=(setarch -R)
  fi
  GTEST_FILTER="$(sanitized_filter "$1")" "${without_randomization[@]}" \
    ctest --preset "$1" -j "$(nproc)" "${labels[@]}"
}

# The wheel holds all that `import hybridgen` needs, wherever it is installed. It is configured like
# the default build, so that ccache has its objects.
wheel() {
  local folder
  folder="$(mktemp -d)"
  # shellcheck disable=SC2064
  trap "rm -rf '$folder'" RETURN
  python -m pip wheel -q --disable-pip-version-check --no-build-isolation --no-deps \
    --config-settings=build-dir=build-wheel -w "$folder" . &&
    python -m pip install -q --disable-pip-version-check --no-deps --target "$folder/site" \
      "$folder"/hybridgen-*.whl &&
    (cd / && PYTHONPATH="$folder/site" python -c "
import hybridgen
assert hybridgen.__file__.startswith('$folder/site'), hybridgen.__file__
print('wheel imports:', hybridgen.__version__)")
}

# A program of somebody else's, from the installed headers and libraries alone.
installed_library() {
  local folder
  folder="$(mktemp -d)"
  # shellcheck disable=SC2064
  trap "rm -rf '$folder'" RETURN
  cmake --install build --prefix "$folder/installed" --component cpp >/dev/null &&
    cmake -S tests/installed -B "$folder/build" -G Ninja \
      -D CMAKE_PREFIX_PATH="$folder/installed" >/dev/null &&
    cmake --build "$folder/build" &&
    "$folder/build/generate"
}

# Where the emulation is missing its test is skipped; a full run must not be without it.
emulates_isas() { [[ "$(uname -m)" != x86_64 || -x build/tests/cpp/isa_emulator_tests ]]; }

set_up=(bash scripts/setup.sh)
if $all; then
  set_up+=(--lint)
fi
check "set-up and build" "${set_up[@]}"
if ((${#failed[@]} > 0)); then
  summary
  exit 1
fi
# shellcheck source=scripts/build_env.sh
source scripts/build_env.sh
# shellcheck source=tests/cpp/sanitized.sh
source tests/cpp/sanitized.sh

if $all; then
  check "emulated instruction sets" emulates_isas
  check "lint" bash scripts/lint.sh
  check "stubs" bash scripts/build_stubs.sh --check
  check "wheel" wheel
  check "installed library" installed_library
  for sanitizers in asan tsan; do
    check "build, $sanitizers" build_sanitized "$sanitizers"
    check "C++ tests, $sanitizers" run_sanitized "$sanitizers"
  done
fi
check "names of tests left out" check_left_out build/tests/cpp/*_tests
check "C++ tests" ctest --preset default -LE '^numa$' -j "$(nproc)"
if $all; then
  check "emulated memory nodes" python tests/numa/run.py --required
fi
check "fetching a language model" python scripts/get_smollm2.py
check "Python tests" python -m pytest -n "$(nproc)" --dist worksteal
summary
