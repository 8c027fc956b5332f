// SPDX-License-Identifier: Apache-2.0
// Places of the largest scores by a radix select: four passes find the key of the last wanted one,
// digit by digit, and a last one writes the places of all that reach it.
#include "kernels/cuda_math.h"
#include "kernels/cuda_pieces.h"
#include "kernels/cuda_planning.h"

namespace hybridgen::kernels {

namespace {

constexpr int kPasses = 4;
constexpr int kDigitBits = 8;
constexpr int kDigits = 1 << kDigitBits;
static_assert(kDigits == kThreads, "a thread per digit");

/// The score of the last place that is wanted, as far as its digits are known: all tokens with
/// larger first digits are wanted, and `wanted` of the `equal` ones with these.
struct Threshold {
  unsigned digits;
  unsigned wanted;
  unsigned equal;
};

/// A request's share of the work, as its blocks see it. A pass counts only tokens that have the
/// threshold's digits of the passes before.
struct Selection {
  PlanRow row;
  std::int64_t groups;
  Pieces pieces;
  const float* scores;    ///< of the block's KV head
  unsigned* counts;       ///< [G, pieces, kPasses, kDigits] tokens by their digit
  unsigned* nans;         ///< [G, pieces]
  Threshold* thresholds;  ///< [kPasses, G] before each pass; unused for the first
};

/// Whether there is anything for this block.
__device__ bool find_selection(const PlanTokens& args, Selection& selection) {
  const PlanRow& row = args.rows[blockIdx.z];
  if (row.num_tokens <= 0 || row.most <= 0) return false;
  selection.pieces = pieces_of(row.num_tokens);
  if (blockIdx.x >= selection.pieces.count) return false;
  selection.row = row;
  selection.groups = args.groups;
  selection.scores = row.guesses + blockIdx.y * row.guess_stride;
  selection.thresholds = static_cast<Threshold*>(row.work);
  selection.counts = reinterpret_cast<unsigned*>(selection.thresholds + kPasses * args.groups);
  selection.nans = selection.counts + args.groups * selection.pieces.count * kPasses * kDigits;
  return true;
}

/// Orders as floats do, with -0 equal to 0.
__device__ unsigned key_of(float score) {
  const unsigned bits = score == 0.0F ? 0U : __float_as_uint(score);
  return (bits & 0x80000000U) != 0 ? ~bits : bits | 0x80000000U;
}

__device__ unsigned digit_of(unsigned key, int pass) {
  return key >> (kDigitBits * (kPasses - 1 - pass)) & (kDigits - 1);
}

__device__ unsigned wanted_of(const Selection& selection) {
  const PlanRow& row = selection.row;
  const std::int64_t count = row.count != nullptr ? *row.count : row.most;
  return static_cast<unsigned>(max(std::int64_t{1}, min(count, row.most)));
}

/// The threshold before a pass, of the block's KV head.
__device__ Threshold threshold_before(const Selection& selection, int pass) {
  if (pass == 0) return {0, wanted_of(selection), static_cast<unsigned>(selection.row.num_tokens)};
  return selection.thresholds[pass * selection.groups + blockIdx.y];
}

/// The threshold behind a pass, whose counts are there: one digit more. All threads call it.
__device__ Threshold threshold_behind(const Selection& selection, int pass) {
  DEVICE_SHARED(Threshold, found, 1);
  const Threshold before = threshold_before(selection, pass);
  const unsigned digit = kDigits - 1 - threadIdx.x;  // the prefix then counts larger digits
  const std::int64_t first = blockIdx.y * selection.pieces.count;
  unsigned tokens = 0;
  for (std::int64_t p = 0; p < selection.pieces.count; ++p) {
    tokens += selection.counts[((first + p) * kPasses + pass) * kDigits + digit];
  }
  const unsigned larger = prefix_of_block(tokens).before;
  if (larger < before.wanted && before.wanted <= larger + tokens) {  // in one thread
    found[0] = {before.digits << kDigitBits | digit, before.wanted - larger, tokens};
  }
  __syncthreads();
  const Threshold threshold = found[0];
  __syncthreads();
  return threshold;
}

__global__ void count_digits_kernel(PlanTokens args, int pass) {
  DEVICE_SHARED(unsigned, counts, kDigits);
  Selection selection;
  if (!find_selection(args, selection)) return;
  const std::int64_t block = blockIdx.y * selection.pieces.count + blockIdx.x;
  const Threshold threshold =
      pass == 0 ? threshold_before(selection, 0) : threshold_behind(selection, pass - 1);
  if (pass > 0 && blockIdx.x == 0 && threadIdx.x == 0) {
    selection.thresholds[pass * selection.groups + blockIdx.y] = threshold;
  }
  counts[threadIdx.x] = 0;
  __syncthreads();
  unsigned nans = 0;
  const Range piece = piece_of_block(selection.pieces, selection.row.num_tokens);
  for (std::int64_t t = piece.begin + threadIdx.x; t < piece.end; t += kThreads) {
    const float score = selection.scores[t];
    const unsigned key = key_of(score);
    nans += score != score ? 1U : 0U;
    // A shift by all 32 bits is undefined.
    if (pass == 0 || key >> (kDigitBits * (kPasses - pass)) == threshold.digits) {
      atomicAdd(&counts[digit_of(key, pass)], 1U);
    }
  }
  nans = prefix_of_block(nans).total;  // its barriers end the counting, too
  selection.counts[(block * kPasses + pass) * kDigits + threadIdx.x] = counts[threadIdx.x];
  if (pass == 0 && threadIdx.x == 0) selection.nans[block] = nans;
}

__device__ bool has_nan(const Selection& selection) {
  unsigned nans = 0;
  const std::int64_t count = selection.groups * selection.pieces.count;
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
    nans |= selection.nans[i];
  }
  return prefix_of_block(nans != 0 ? 1U : 0U).total != 0;
}

/// Tokens so far whose score is larger than the threshold, or equal to it.
struct Taken {
  unsigned larger;
  unsigned equal;
};

/// In the pieces before the block's.
__device__ Taken taken_before(const Selection& selection, const Threshold& threshold) {
  const unsigned* counts =
      selection.counts + blockIdx.y * selection.pieces.count * kPasses * kDigits;
  Taken taken{0, 0};
  for (unsigned row = 0; row < blockIdx.x * kPasses; ++row) {
    const int pass = static_cast<int>(row) % kPasses;
    const unsigned digit = digit_of(threshold.digits, pass);
    const unsigned count = counts[row * kDigits + threadIdx.x];
    if (threadIdx.x > digit) taken.larger += count;
    if (threadIdx.x == digit && pass == kPasses - 1) taken.equal += count;
  }
  return {prefix_of_block(taken.larger).total, prefix_of_block(taken.equal).total};
}

/// Writes the block's places: all larger ones, and of the equal ones the first, or the last.
__device__ void write_places(const Selection& selection,
                             const Threshold& threshold,
                             std::int32_t* places) {
  DEVICE_SHARED(Taken, warps, kWarps);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned lower_lanes = (1U << lane) - 1;
  const Range piece = piece_of_block(selection.pieces, selection.row.num_tokens);
  const unsigned skipped =
      selection.row.takes_newer ? threshold.equal - threshold.wanted : 0U;  // equal ones
  Taken taken = taken_before(selection, threshold);
  for (std::int64_t first = piece.begin; first < piece.end; first += kThreads) {
    const std::int64_t token = first + threadIdx.x;
    const unsigned key = token < piece.end ? key_of(selection.scores[token]) : 0U;
    const bool is_larger = token < piece.end && key > threshold.digits;
    const bool is_equal = token < piece.end && key == threshold.digits;
    const unsigned larger_lanes = __ballot_sync(kAllLanes, is_larger ? 1 : 0);
    const unsigned equal_lanes = __ballot_sync(kAllLanes, is_equal ? 1 : 0);
    const unsigned warp = threadIdx.x / kWarp;
    if (lane == 0) {
      warps[warp] = {static_cast<unsigned>(__popc(larger_lanes)),
                     static_cast<unsigned>(__popc(equal_lanes))};
    }
    __syncthreads();
    Taken before = taken;
    for (unsigned w = 0; w < kWarps; ++w) {
      const Taken of_warp = warps[w];
      taken.larger += of_warp.larger;
      taken.equal += of_warp.equal;
      if (w < warp) before = taken;
    }
    before.larger += static_cast<unsigned>(__popc(larger_lanes & lower_lanes));
    before.equal += static_cast<unsigned>(__popc(equal_lanes & lower_lanes));
    const unsigned equal = before.equal > skipped ? before.equal - skipped : 0U;
    if (is_larger || (is_equal && before.equal >= skipped && equal < threshold.wanted)) {
      places[before.larger + min(equal, threshold.wanted)] = static_cast<std::int32_t>(token);
    }
    __syncthreads();
  }
}

__global__ void write_places_kernel(PlanTokens args) {
  Selection selection;
  if (!find_selection(args, selection)) return;
  const PlanRow& row = selection.row;
  std::int32_t* places = row.places + blockIdx.y * row.most;
  const bool is_none = has_nan(selection);
  if (!is_none) {
    write_places(selection, threshold_behind(selection, kPasses - 1), places);
  }
  const std::int64_t used = is_none ? 0 : wanted_of(selection);
  const std::int64_t first = used + blockIdx.x * static_cast<std::int64_t>(kThreads) + threadIdx.x;
  for (std::int64_t i = first; i < row.most; i += selection.pieces.count * kThreads) {
    places[i] = static_cast<std::int32_t>(row.num_tokens);
  }
}

}  // namespace

std::size_t largest_work_bytes(std::int64_t groups, std::int64_t tokens) {
  const auto pieces = static_cast<std::size_t>(groups * pieces_of(tokens).count);
  return pieces * (kPasses * kDigits + 1) * sizeof(unsigned) +
         static_cast<std::size_t>(groups * kPasses) * sizeof(Threshold);
}

void largest_positions_cuda(const PlanTokens& args, void* stream) {
  if (args.batch <= 0 || args.groups <= 0 || args.max_tokens <= 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  for (int pass = 0; pass < kPasses; ++pass) {
    launch(count_digits_kernel, grid_of(args), kThreads, 0, cuda_stream, args, pass);
  }
  launch(write_places_kernel, grid_of(args), kThreads, 0, cuda_stream, args);
  check_launch("largest_positions_cuda");
}

}  // namespace hybridgen::kernels
