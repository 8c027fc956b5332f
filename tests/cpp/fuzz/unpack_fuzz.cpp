// SPDX-License-Identifier: Apache-2.0
// Any bytes as quantised tensors: nothing is read or written outside of what was given, and what is
// not refused gives numbers. With clang, -fsanitize=fuzzer runs LLVMFuzzerTestOneInput for as long
// as one likes; elsewhere seeded_inputs.cpp does for a while.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "hybridgen/core/error.h"
#include "kernels/coded_rows.h"
#include "kernels/gguf_blocks.h"
#include "kernels/packed_integers.h"

namespace {

using hybridgen::kernels::GgufFormat;
using hybridgen::kernels::PackedIntegers;
using hybridgen::kernels::PackedLayout;

/// Takes numbers off the front of the input; zeros when there is no more.
class Bytes {
 public:
  Bytes(const std::uint8_t* data, std::size_t size) : data_(data), size_(size) {}

  std::uint8_t byte() { return size_ == 0 ? std::uint8_t{0} : (--size_, *data_++); }
  /// `count` numbers in a vector of exactly that length, so that one too many is an error.
  template <typename T>
  std::vector<T> take(std::int64_t count) {
    std::vector<T> numbers(static_cast<std::size_t>(count));
    const std::size_t bytes = std::min(size_, numbers.size() * sizeof(T));
    if (bytes > 0) std::memcpy(numbers.data(), data_, bytes);
    data_ += bytes;
    size_ -= bytes;
    return numbers;
  }

 private:
  const std::uint8_t* data_;
  std::size_t size_;
};

void unpack_gguf(Bytes& bytes) {
  const auto formats = hybridgen::kernels::gguf_formats();
  const GgufFormat& format = formats[bytes.byte() % formats.size()];
  const std::int64_t blocks = 1 + bytes.byte() % 4;
  const std::int64_t inputs = blocks * format.block_values;
  const auto row = bytes.take<std::uint8_t>(blocks * format.block_bytes);
  std::vector<float> values(static_cast<std::size_t>(inputs));
  restore_gguf_row(format, row.data(), inputs, values.data());
  if (format.bits == 0) return;
  std::vector<std::int8_t> codes(static_cast<std::size_t>(inputs));
  std::vector<float> scales(static_cast<std::size_t>(inputs / format.group)), minima(scales);
  split_gguf_row(format,
                 row.data(),
                 inputs,
                 codes.data(),
                 scales.data(),
                 format.has_minima ? minima.data() : nullptr);
  for (std::int64_t i = 0; i < inputs; ++i) {
    const auto group = static_cast<std::size_t>(i / format.group);
    float value = scales[group] * static_cast<float>(codes[static_cast<std::size_t>(i)]);
    if (format.has_minima) value += minima[group];
    // Bit for bit, where neither is NaN: both ways mean the same numbers.
    const float restored = values[static_cast<std::size_t>(i)];
    if (value == value && value != restored) __builtin_trap();
  }
  std::vector<std::uint8_t> packed(
      static_cast<std::size_t>(hybridgen::kernels::coded_row_bytes(format.bits, inputs)));
  hybridgen::kernels::pack_row(format.bits, codes.data(), inputs, packed.data());
}

void unpack_integers(Bytes& bytes) {
  PackedIntegers packed;
  packed.layout = bytes.byte() % 2 == 0 ? PackedLayout::kGptq : PackedLayout::kAwq;
  packed.bits = bytes.byte();
  packed.zero_offset = bytes.byte() % 2;
  packed.inputs = bytes.byte() % 65;
  packed.outputs = bytes.byte() % 65;
  packed.groups = bytes.byte() % 5;
  const auto groups = bytes.take<std::int32_t>(packed.inputs);
  packed.group_of_input = groups.data();
  check(packed);  // throws where a size or group does not fit
  const std::int64_t per = 32 / packed.bits;
  const auto codes = bytes.take<std::int32_t>(packed.inputs * packed.outputs / per);
  const auto zeros = bytes.take<std::int32_t>(packed.groups * packed.outputs / per);
  const auto scales = bytes.take<float>(packed.groups * packed.outputs);
  packed.codes = codes.data();
  packed.zeros = zeros.data();
  packed.scales = scales.data();
  const std::int64_t first = bytes.byte() % packed.outputs;
  const std::int64_t count = packed.outputs - first;
  std::vector<std::uint8_t> unpacked(static_cast<std::size_t>(count * packed.inputs));
  std::vector<std::uint8_t> zeros_of_row(static_cast<std::size_t>(packed.groups));
  std::vector<float> values(static_cast<std::size_t>(packed.inputs));
  unpack_codes(packed, first, count, unpacked.data());
  for (std::int64_t row = 0; row < count; ++row) {
    unpack_zeros(packed, first + row, zeros_of_row.data());
    restore_packed_row(packed,
                       first + row,
                       unpacked.data() + row * packed.inputs,
                       zeros_of_row.data(),
                       values.data());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Bytes bytes(data, size);
  try {
    if (bytes.byte() % 2 == 0) {
      unpack_gguf(bytes);
    } else {
      unpack_integers(bytes);
    }
  } catch (const hybridgen::CheckpointError&) {
    return -1;  // refused: of no interest to libFuzzer
  }
  return 0;
}
