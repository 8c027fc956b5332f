// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>

#include "device_copy.h"

namespace hybridgen::kernels::test {

/// A copy of an array on the device, `shift` numbers behind a multiple of 16 bytes.
class DeviceRows {
 public:
  explicit DeviceRows(const Array& values, std::size_t shift = 0)
      : values_(values), shift_(shift * size_of(values.dtype())), copy_(shifted(values, shift_)) {}

  void* data() const { return copy_.get<std::byte>() + shift_; }
  Array values() const {
    const std::vector<std::byte> all = copy_.values<std::byte>();
    Array values = values_;
    std::copy(all.begin() + static_cast<std::ptrdiff_t>(shift_),
              all.end(),
              static_cast<std::byte*>(values.data()));
    return values;
  }

 private:
  static std::vector<std::byte> shifted(const Array& values, std::size_t shift) {
    const auto* bytes = static_cast<const std::byte*>(values.data());
    std::vector<std::byte> all(shift);
    all.insert(all.end(),
               bytes,
               bytes + static_cast<std::size_t>(values.count()) * size_of(values.dtype()));
    return all;
  }

  Array values_;
  std::size_t shift_;
  DeviceCopy copy_;
};

}  // namespace hybridgen::kernels::test
