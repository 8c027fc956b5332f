// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine_thread.h"

#include <exception>
#include <future>
#include <system_error>
#include <utility>

#include "hybridgen/core/error.h"
#include "runtime/process.h"

namespace hybridgen {
namespace {

thread_local bool is_of_engine = false;

}  // namespace

std::thread start_engine_thread(const std::string& which, std::function<void()> work) {
  std::promise<void> promise;
  const std::future<void> has_begun = promise.get_future();
  try {
    std::thread thread([begun = std::move(promise), work = std::move(work)]() mutable {
      is_of_engine = true;
      touch_thread_local_data();
      begun.set_value();
      work();
    });
    has_begun.wait();
    return thread;
  } catch (const std::system_error& error) {
    throw DeviceError(
        message(which, " could not be created: ", error.what(), "; allowed: ", thread_limits()));
  }
}

bool is_engine_thread() { return is_of_engine; }

void touch_thread_local_data() {
  // A library has one block a thread, which the first use of any variable in it allocates.
  [[maybe_unused]] const volatile bool of_ours = is_of_engine;
  [[maybe_unused]] const volatile int of_the_standard_library = std::uncaught_exceptions();
}

}  // namespace hybridgen
