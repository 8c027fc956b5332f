// SPDX-License-Identifier: Apache-2.0
// What the allocator and LibTorch throw, in this library's own terms.
#pragma once

#include <exception>

namespace hybridgen {

/// A failed allocation (std::bad_alloc, LibTorch's allocators and mappings of files) as an
/// OutOfMemoryError, LibTorch's complaint about a matrix without finite eigenvalues as a
/// NumericError, whatever else LibTorch throws as a DeviceError with its text; every other
/// exception, also a user's own, as it is.
std::exception_ptr own_error(std::exception_ptr error);

/// Whether own_error makes an OutOfMemoryError of it, or it is one.
bool is_lack_of_memory(std::exception_ptr error);

}  // namespace hybridgen
