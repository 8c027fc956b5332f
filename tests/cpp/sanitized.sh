# shellcheck shell=bash disable=SC2034
# SPDX-License-Identifier: Apache-2.0
# What scripts/test.sh leaves out under the sanitizers, and why. The plain build runs everything, and
# so do the sanitizers with --long.

# The folders whose tests start threads: in the others the thread sanitizer has nothing to look at.
thread_folders=(runtime memory device pipeline engine)

# Tests that run code again that others run, for the sake of what it returns. What is left runs every
# method to its end in every setting.
left_out=(
  # The same settings with LibTorch's operators, which are not instrumented.
  'Methods/ExactMethods.EqualFullAttentionThroughLibTorch/*'
  'Mathematics.AtenAndKernelsAgree'
  # Values and counters.
  'Methods/ApproximateMethods.DifferFromFullAttention/*'
  'Methods/ApproximateMethods.DoNotDependOnTheBatch/*'
  'Methods/LinkBytes.*'
  'LinkBytesOfTwiceTheTokens.*'
  # Allocations, counted by an operator new of the test's own.
  'SteadyState.*'
)
# Random delays between threads: the memory is the same in any order, so they are for the thread
# sanitizer, which gets one setting of each kind.
left_out_of_asan='Methods/ApproximateMethods.DoNotDependOnTheImplementationOrOnTiming/*'
left_out_of_tsan='*OnTiming/*_shifted:*OnTiming/*_on_host:*OnTiming/*_quiet:*OnTiming/*_resident'

# Fails, naming them, if patterns above match no test of the given executables: who renames a test
# renames it here, too.
check_left_out() {
  local tests pattern expression
  local -a patterns named unmatched=()
  IFS=: read -ra patterns <<<"$left_out_of_asan:$left_out_of_tsan"
  named=("${left_out[@]}" "${patterns[@]}")
  tests="$(for each in "$@"; do "$each" --gtest_list_tests; done |
    awk '/^[^ ].*\.( |$)/ { suite = $1 } /^ / { print suite $1 }')" || return
  for pattern in "${named[@]}"; do
    expression="${pattern//./\\.}"
    grep -qx -e "${expression//\*/.*}" <<<"$tests" || unmatched+=("$pattern")
  done
  ((${#unmatched[@]} == 0)) && return
  printf 'tests/cpp/sanitized.sh leaves out what no test is called: %s\n' "${unmatched[@]}"
  return 1
}

# Prints the filter of GoogleTest for the preset asan or tsan.
sanitized_filter() {
  local IFS=: own="left_out_of_$1"
  if [[ -n "${HYBRIDGEN_LONG:-}" ]]; then
    echo '*'
  else
    echo "-${left_out[*]}:${!own}"
  fi
}
