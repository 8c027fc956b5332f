// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_emulator/shared_arena.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>

#include "support/cuda_emulator/sanitizer.h"

namespace hybridgen::cuda_emulator {

namespace {

constexpr std::size_t kGapBytes = 64;
constexpr std::size_t kMaxArrays = 64;
constexpr std::size_t kArenaBytes = kMaxSharedBytes + kMaxArrays * (kGapBytes + 16);
// All bits set: NaN as float16, bfloat16, float32 and float64, and -1 as an integer.
constexpr int kUnwritten = 0xFF;
// What the device promises of dynamic shared memory.
constexpr std::size_t kDynamicAlignment = 16;

std::byte* allocate(std::size_t bytes) {
  auto* memory = static_cast<std::byte*>(std::aligned_alloc(128, (bytes + 127) / 128 * 128));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

}  // namespace

void SharedArena::Free::operator()(std::byte* memory) const {
  std::free(memory);  // NOLINT(cppcoreguidelines-no-malloc)
}

SharedArena::SharedArena() : memory_(allocate(kArenaBytes)) { arrays_.reserve(kMaxArrays); }

SharedArena::~SharedArena() { unpoison(memory_.get(), kArenaBytes); }

void SharedArena::start_block(std::size_t dynamic_bytes) {
  poison(memory_.get(), kArenaBytes);
  arrays_.clear();
  used_ = kGapBytes;
  static_bytes_ = 0;
  dynamic_ = add(nullptr, dynamic_bytes, kDynamicAlignment);
}

void* SharedArena::static_array(const void* key, std::size_t bytes, std::size_t alignment) {
  const EmulatorsOwnAccesses own;
  for (const Array& array : arrays_) {
    if (array.key == key) return array.place;
  }
  static_bytes_ += bytes;
  if (static_bytes_ > kSharedBytesWithoutAsking || arrays_.size() == kMaxArrays) return nullptr;
  return add(key, bytes, alignment);
}

std::byte* SharedArena::add(const void* key, std::size_t bytes, std::size_t alignment) {
  const std::size_t begin = (used_ + alignment - 1) / alignment * alignment;
  if (begin + bytes + kGapBytes > kArenaBytes) return nullptr;
  std::byte* place = memory_.get() + begin;
  used_ = begin + bytes + kGapBytes;
  unpoison(place, bytes);
  std::memset(place, kUnwritten, bytes);
  arrays_.push_back({.key = key, .place = place, .bytes = bytes});
  return place;
}

bool SharedArena::holds(const void* address, std::size_t bytes) const {
  const auto* first = static_cast<const std::byte*>(address);
  return std::any_of(arrays_.begin(), arrays_.end(), [&](const Array& array) {
    return std::greater_equal<>{}(first, array.place) &&
           std::less_equal<>{}(first + bytes, array.place + array.bytes);
  });
}

}  // namespace hybridgen::cuda_emulator
