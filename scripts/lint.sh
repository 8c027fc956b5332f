#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks format, style, types and spelling; changes nothing. Needs `bash scripts/setup.sh --lint`.
#
#   bash scripts/lint.sh          everything; clang-tidy as scripts/clang_tidy.py says
#   bash scripts/lint.sh --all    clang-tidy on all sources
#   bash scripts/lint.sh --fix    first let clang-format and ruff put right what they can
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# shellcheck source=scripts/build_env.sh
source scripts/build_env.sh

tidy=(python scripts/clang_tidy.py --jobs "$(hybridgen_jobs)")
fix=false
for argument in "$@"; do
  case "$argument" in
    --all) tidy+=(--all) ;;
    --fix) fix=true ;;
    *)
      echo "lint.sh: unknown argument '$argument'; allowed: --all, --fix" >&2
      exit 2
      ;;
  esac
done

files_like() { git ls-files --cached --others --exclude-standard -- "$@" | sort -u; }

mapfile -t cpp_files < <(files_like '*.h' '*.cpp' '*.cu')
mapfile -t shell_files < <(files_like '*.sh' .ci/run)
mapfile -t python_files < <(files_like '*.py')

if $fix; then
  clang-format -i "${cpp_files[@]}"
  ruff check -q --fix .
  ruff format -q .
fi

failed=()
check() {
  local name="$1" start=$SECONDS
  shift
  if "$@"; then
    echo "lint.sh: $name: ok, $((SECONDS - start)) s"
  else
    failed+=("$name")
  fi
}

licence_headers() {
  local file missing=0
  for file in "${cpp_files[@]}" "${python_files[@]}" "${shell_files[@]}"; do
    if ! head -n 3 "$file" | grep -q 'SPDX-License-Identifier: Apache-2.0'; then
      echo "$file: the first lines lack 'SPDX-License-Identifier: Apache-2.0'"
      missing=1
    fi
  done
  return $missing
}

check "clang-format" clang-format --dry-run -Werror "${cpp_files[@]}"
check "ruff" ruff check -q .
check "ruff format" ruff format -q --check .
check "mypy" mypy python/hybridgen scripts
check "codespell" codespell
check "shellcheck" shellcheck "${shell_files[@]}"
check "hadolint" hadolint containers/*.Dockerfile
check "layers" python scripts/check_layers.py
check "licence headers" licence_headers
if [[ -f build/compile_commands.json ]]; then
  check "clang-tidy" "${tidy[@]}"
else
  echo "lint.sh: no build/compile_commands.json; run scripts/setup.sh first" >&2
  failed+=("clang-tidy")
fi

if ((${#failed[@]} > 0)); then
  printf 'lint.sh: failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
