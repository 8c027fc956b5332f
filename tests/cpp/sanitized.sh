# shellcheck shell=bash disable=SC2034
# SPDX-License-Identifier: Apache-2.0
# What scripts/test.sh leaves out under the sanitizers, and why. The plain build runs everything, and
# so do the sanitizers with --long.

# The folders whose tests start threads: in the others the thread sanitizer has nothing to look at.
thread_folders=(device memory models pipeline engine)

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

# Prints the filter of GoogleTest for the preset asan or tsan.
sanitized_filter() {
  local IFS=: own="left_out_of_$1"
  if [[ -n "${HYBRIDGEN_LONG:-}" ]]; then
    echo '*'
  else
    echo "-${left_out[*]}:${!own}"
  fi
}
