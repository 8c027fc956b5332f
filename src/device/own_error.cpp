// SPDX-License-Identifier: Apache-2.0
#include "device/own_error.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

// How a lack of memory is worded where it has no type of its own: by LibTorch's CPU allocator, for
// mapped files, and by the oneDNN inside LibTorch, which says no more than what it was about.
constexpr std::array kLackOfMemory = {
    "not enough memory", "unable to mmap", "Cannot allocate memory", "out of memory"};
constexpr std::array kLackOfMemoryInOneDnn = {
    "could not create a memory", "could not create a primitive", "could not execute a primitive"};

template <std::size_t N>
bool contains_any(std::string_view text, const std::array<const char*, N>& words) {
  return std::ranges::any_of(
      words, [&](const char* each) { return text.find(each) != std::string_view::npos; });
}

std::string shortened(std::string_view text) {
  constexpr std::size_t kMost = 600;
  return std::string(text.substr(0, kMost)) + (text.size() > kMost ? "..." : "");
}

std::exception_ptr out_of_memory(std::string_view text) {
  return std::make_exception_ptr(
      OutOfMemoryError(message("[memory] an allocation failed: ",
                               shortened(text),
                               "; allowed: what the system has free; lower the memory settings or "
                               "run fewer or shorter requests at a time")));
}

}  // namespace

std::exception_ptr own_error(std::exception_ptr error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::bad_alloc& failure) {
    return out_of_memory(failure.what());
  } catch (const c10::OutOfMemoryError& failure) {
    return out_of_memory(failure.what_without_backtrace());
  } catch (const c10::LinAlgError& failure) {
    return std::make_exception_ptr(
        NumericError(message("[LibTorch] ",
                             shortened(failure.what_without_backtrace()),
                             "; check the checkpoint, or run it in float32 if activations "
                             "overflow")));
  } catch (const c10::Error& failure) {
    const std::string_view text = failure.what_without_backtrace();
    return contains_any(text, kLackOfMemory)
               ? out_of_memory(text)
               : std::make_exception_ptr(DeviceError(message("[LibTorch] ", shortened(text))));
  } catch (const Error&) {
    return error;
  } catch (const std::exception& failure) {
    const std::string_view text = failure.what();
    return contains_any(text, kLackOfMemoryInOneDnn) ? out_of_memory(text) : error;
  } catch (...) {
    return error;
  }
}

bool is_lack_of_memory(std::exception_ptr error) {
  try {
    std::rethrow_exception(own_error(std::move(error)));
  } catch (const OutOfMemoryError&) {
    return true;
  } catch (...) {
    return false;
  }
}

}  // namespace hybridgen
