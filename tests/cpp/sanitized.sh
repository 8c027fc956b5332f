# shellcheck shell=bash disable=SC2034
# SPDX-License-Identifier: Apache-2.0
# What scripts/test.sh leaves out under the sanitizers, and why. The plain build runs everything, and
# so do the sanitizers with --long.

# The folders of the address sanitizer's tests: all but isa_emulator, whose kernels are those of
# kernels, compiled for minutes over stand-ins for instructions.
address_folders=(core runtime memory kernels kvcache selection scheduling cuda_emulator emulated device
  parts methods pipeline engine)

# The folders whose tests start threads, or kernels, whose threads count too: in the others the thread
# sanitizer has nothing to look at.
thread_folders=(runtime memory cuda_emulator emulated device pipeline engine)

# Tests that run code again that others run, for the sake of what it returns. What is left runs every
# method to its end in every setting.
left_out=(
  # The same settings with LibTorch's operators, which are not instrumented.
  'Methods/ExactMethods.EqualFullAttentionThroughLibTorch/*'
  'Mathematics.AtenAndKernelsAgree'
  # Settings that differ in values only: each method runs on the emulated device in one, by LibTorch's
  # operators and by our kernels.
  'Methods/Methods*/exact_*_*'
  'Methods/Methods*/exact_streaming_llm'
  'Methods/Methods*/exact_h2o'
  'Methods/Methods*/exact_keyformer'
  'Methods/Methods*/exact_infinigen'
  'Methods/Methods*/exact_hgca'
  'Methods/Methods*/*_shifted'
  'Methods/Methods*/*_on_host'
  'Methods/Methods*/*_quiet'
  'Methods/Methods*/*_pool'
  'Methods/Methods*/*_resident'
  'Methods/Methods*/hybridgen_keyformer'
  'Methods/Methods*/hybridgen_digests'
  # Modelled times.
  'Methods/MethodsInTime.*'
  'TimedDevice.*'
  # Values and counters.
  'Methods/ApproximateMethods.DifferFromFullAttention/*'
  'Methods/ApproximateMethods.DoNotDependOnTheBatch/*'
  'Methods/LinkBytes.*'
  'Methods/LaunchesPerLayer.*'
  'Methods/DriverWaits.*'
  'LinkBytesOfTwiceTheTokens.*'
  # Allocations, counted by an operator new of the test's own.
  'SteadyState.*'
  # Resident memory: sanitizers keep for a while what was freed.
  'HostKvStoreGrowth.OfTenThousandShortRequestsLeavesResidentMemoryFlat'
  'HostMemory.OfHundredsOfShortRequestsStaysFlat'
)
# Random delays between threads: the memory is the same in any order, so they are for the thread
# sanitizer, which gets one setting of each kind, and of the kernels that merge the launches whose
# segments are of all kinds.
left_out_of_asan='Methods/ApproximateMethods.DoNotDependOnTheImplementationOrOnTiming/*:*EachStreamHasAThread/*:*StreamsAreDelayedAtRandom/*:Modes/StreamedOnDevice.*/2'
# Planted faults are races, of which it reports those that it sees: results tell whether they are noticed.
left_out_of_tsan='PlantedFaults.*Noticed:DTypes/MergeOnDevice.AgreesWithTheCpuTwin/*:*OnTiming/*_shifted:*OnTiming/*_on_host:*OnTiming/*_quiet:*OnTiming/*_resident'
# Kernels again, whose own tests have them in every shape, and shapes that differ in loops only.
left_out_of_tsan+=':DTypes/CudaOperations.*:LostMassByKernels.*:DTypes/AttentionOnDevice.IsThatOfPlainLoopsForAllShapes/*'
# A kernel's threads are as many for any method.
left_out_of_tsan+=':Methods/MethodsByKernels.*/h2o:Methods/MethodsByKernels.*/hgca:Methods/MethodsByKernels.*/infinigen'
# Devices whose work runs in the thread that queues it, at once or when that waits.
left_out_of_tsan+=':*OnlyIfItIsWaitedFor/*:*HaveNoRaceWhenWorkRunsAtOnce/*:Methods/MemoryOfAMethod.*'
left_out_of_tsan+=':Modes/StreamedOnDevice.*/0:Modes/StreamedOnDevice.*/1'
# Each method on a disk in one setting: with all tokens chosen the threads are those of a few.
left_out_of_tsan+=':Methods/OnDisk.*/infinigen_exact:Methods/OnDisk.*/hgca_exact:Methods/OnDisk.*/hybridgen_h2o_exact:Methods/OnDisk.*/hybridgen_keyformer_exact:Methods/OnDisk.*/hybridgen_digests_exact:Methods/OnDisk.*/hybridgen_partial_keys_exact'
# Rows of 8 and 4 bits in one pair of formats.
left_out_of_tsan+=':Formats/SmallRows.*/int8:Formats/SmallRows.*/int8_keys:Formats/SmallRows.*/int8_values:Formats/SmallRows.*/int4*'

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
