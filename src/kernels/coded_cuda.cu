// SPDX-License-Identifier: Apache-2.0
// A block takes a few outputs for all rows; its threads share the inputs, a word of codes at a
// time. Within a word all inputs have one scale and one minimum, so these are applied to sums of
// products with the codes' numbers.
#include "kernels/cuda_coded.h"
#include "kernels/cuda_math.h"

namespace hybridgen::kernels {

namespace {

constexpr unsigned kThreads = 128;
constexpr unsigned kWarps = kThreads / kWarp;
constexpr unsigned kMostRows = 16;

/// Four elements that lie side by side, read at once.
template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T values[4];
};

/// Numbers of a row in 32 bits: they are divided by each other.
struct CodedProduct {
  CodedLinearArgs args;
  std::int64_t outputs;
  unsigned inputs;
  unsigned group;
  unsigned groups;      ///< of a row
  unsigned words;       ///< of a row's codes
  bool can_read_fours;  ///< rows of x lie at multiples of Four
};

/// x[first..first + 3] of a row, 0 beyond the last input.
template <typename T>
__device__ __forceinline__ void load_four(const CodedProduct& product,
                                          const T* x,
                                          unsigned first,
                                          float (&to)[4]) {
  if (product.can_read_fours && first + 4 <= product.inputs) {
    const Four<T> four = *reinterpret_cast<const Four<T>*>(x + first);
    for (int i = 0; i < 4; ++i) to[i] = to_float(four.values[i]);
    return;
  }
  for (unsigned i = 0; i < 4; ++i)
    to[i] = first + i < product.inputs ? to_float(x[first + i]) : 0.0F;
}

__device__ __forceinline__ float load_scale(DType dtype, const void* scales, std::int64_t at) {
  return dtype == DType::kFloat32 ? static_cast<const float*>(scales)[at]
                                  : to_float(static_cast<const __half*>(scales)[at]);
}

/// A word of codes: 4 inputs of 8 bits, or 8 of 4 bits, in runs of 4 that lie side by side.
template <int kBits>
struct Word {
  static constexpr unsigned kRuns = 8 / kBits;

  /// The first input of a run.
  __device__ static unsigned input(unsigned word, unsigned run) {
    // 4 bits: a block of 32 inputs is 4 words; high halves are 16 inputs further on.
    return kBits == 8 ? word * 4 : word / 4 * 32 + word % 4 * 4 + run * 16;
  }

  /// The numbers behind the codes, `zero` the code of 0: exact, by the bits of 2^23 + code.
  __device__ static void numbers(std::uint32_t word, int zero, float (&to)[kRuns][4]) {
    constexpr std::uint32_t kMask = kBits == 8 ? 0xffU : 0xfU;
    const float offset = 8388608.0F + static_cast<float>(zero);
    for (unsigned run = 0; run < kRuns; ++run) {
      for (unsigned i = 0; i < 4; ++i) {
        const std::uint32_t code = word >> (8 * i + kBits * run) & kMask;
        to[run][i] = __uint_as_float(0x4b000000U | code) - offset;
      }
    }
  }
};

/// What a thread adds to every output and row of its block.
template <typename T, int kBits, unsigned kRows, unsigned kOutputs>
__device__ void add_word(const CodedProduct& product,
                         unsigned word,
                         float (&sums)[kOutputs][kRows]) {
  using Codes = Word<kBits>;
  const CodedWeightView& weight = product.args.weight;
  const unsigned group = Codes::input(word, 0) / product.group;
  const bool has_minima = weight.minima != nullptr;
  const int zero = kBits == 8 ? 128 : has_minima ? 0 : 8;
  float numbers[kOutputs][Codes::kRuns][4];
  float scales[kOutputs];
  float minima[kOutputs];
  DEVICE_UNROLL
  for (unsigned o = 0; o < kOutputs; ++o) {
    const std::int64_t output =
        min(blockIdx.x * static_cast<std::int64_t>(kOutputs) + o, product.outputs - 1);
    const auto* codes =
        reinterpret_cast<const std::uint32_t*>(weight.codes) + output * product.words;
    // Two's complement with its sign turned over is the number and 128.
    Codes::numbers(codes[word] ^ (kBits == 8 ? 0x80808080U : 0U), zero, numbers[o]);
    scales[o] = load_scale(weight.scale_dtype, weight.scales, output * product.groups + group);
    minima[o] = has_minima
                    ? load_scale(weight.scale_dtype, weight.minima, output * product.groups + group)
                    : 0.0F;
  }
  DEVICE_UNROLL
  for (unsigned r = 0; r < kRows; ++r) {
    const std::int64_t row = blockIdx.y * static_cast<std::int64_t>(kRows) + r;
    if (row >= product.args.rows) break;
    const T* x = static_cast<const T*>(product.args.x) + row * product.args.x_stride;
    float products[kOutputs] = {};
    float sum = 0.0F;
    DEVICE_UNROLL
    for (unsigned run = 0; run < Codes::kRuns; ++run) {
      float values[4];
      load_four(product, x, Codes::input(word, run), values);
      DEVICE_UNROLL
      for (int i = 0; i < 4; ++i) {
        sum += values[i];
        DEVICE_UNROLL
        for (unsigned o = 0; o < kOutputs; ++o) {
          products[o] = fmaf(values[i], numbers[o][run][i], products[o]);
        }
      }
    }
    DEVICE_UNROLL
    for (unsigned o = 0; o < kOutputs; ++o) {
      sums[o][r] = fmaf(scales[o], products[o], sums[o][r]);
      if (has_minima) sums[o][r] = fmaf(minima[o], sum, sums[o][r]);
    }
  }
}

template <typename T, int kBits, unsigned kRows, unsigned kOutputs>
__global__ void coded_linear_kernel(CodedProduct product) {
  DEVICE_SHARED(float, of_warps, kWarps * kOutputs * kRows);
  const CodedLinearArgs& args = product.args;
  const unsigned thread = threadIdx.x;
  float sums[kOutputs][kRows] = {};
  for (unsigned word = threadIdx.x; word < product.words; word += kThreads) {
    if (Word<kBits>::input(word, 0) < product.inputs) {
      add_word<T, kBits, kRows, kOutputs>(product, word, sums);
    }
  }
  DEVICE_UNROLL
  for (unsigned o = 0; o < kOutputs; ++o) {
    DEVICE_UNROLL
    for (unsigned r = 0; r < kRows; ++r) {
      const float sum = combine_warp(sums[o][r], Sum{});
      if (thread % kWarp == 0) of_warps[(thread / kWarp * kOutputs + o) * kRows + r] = sum;
    }
  }
  __syncthreads();
  const std::int64_t output = blockIdx.x * static_cast<std::int64_t>(kOutputs) + thread / kRows;
  const std::int64_t row = blockIdx.y * static_cast<std::int64_t>(kRows) + thread % kRows;
  if (thread >= kOutputs * kRows || output >= product.outputs || row >= args.rows) return;
  float value = 0.0F;
  for (unsigned warp = 0; warp < kWarps; ++warp) {
    value += of_warps[warp * kOutputs * kRows + thread];
  }
  if (args.bias != nullptr) value += to_float(static_cast<const T*>(args.bias)[output]);
  const std::int64_t at = row * args.y_stride + output;
  if (args.y_dtype == DType::kFloat32) {
    static_cast<float*>(args.y)[at] = value;
  } else {
    store(static_cast<T*>(args.y) + at, value);
  }
}

template <typename T, int kBits, unsigned kRows, unsigned kOutputs>
void launch_product(const CodedProduct& product, cudaStream_t stream) {
  static_assert(kOutputs * kRows <= kThreads);
  const dim3 grid(static_cast<unsigned>((product.outputs + kOutputs - 1) / kOutputs),
                  static_cast<unsigned>((product.args.rows + kRows - 1) / kRows));
  launch(coded_linear_kernel<T, kBits, kRows, kOutputs>, grid, kThreads, 0, stream, product);
}

template <typename T, int kBits>
void launch_for_rows(const CodedProduct& product, cudaStream_t stream) {
  if (product.args.rows == 1) {
    launch_product<T, kBits, 1, 4>(product, stream);
  } else if (product.args.rows <= 4) {
    launch_product<T, kBits, 4, 4>(product, stream);
  } else {
    launch_product<T, kBits, kMostRows, 2>(product, stream);
  }
}

}  // namespace

void coded_linear_cuda(const CodedLinearArgs& args, std::int64_t outputs, void* stream) {
  if (args.rows <= 0 || outputs <= 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const CodedWeightView& weight = args.weight;
  with_type_of(args.dtype, [&]<typename T>(T* /*type*/) {
    const bool can_read_fours =
        reinterpret_cast<std::uintptr_t>(args.x) % sizeof(Four<T>) == 0 && args.x_stride % 4 == 0;
    const CodedProduct product{
        .args = args,
        .outputs = outputs,
        .inputs = static_cast<unsigned>(weight.inputs),
        .group = static_cast<unsigned>(weight.group),
        .groups = static_cast<unsigned>(coded_groups(weight.inputs, weight.group)),
        .words = static_cast<unsigned>(coded_row_bytes(weight.bits, weight.inputs) / 4),
        .can_read_fours = can_read_fours};
    if (weight.bits == 8) {
      launch_for_rows<T, 8>(product, cuda_stream);
    } else {
      launch_for_rows<T, 4>(product, cuda_stream);
    }
  });
  check_launch("coded_linear_cuda");
}

}  // namespace hybridgen::kernels
