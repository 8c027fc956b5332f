// SPDX-License-Identifier: Apache-2.0
#include "runtime/process.h"

#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen {

std::string thread_limits() {
  rlimit limit{};
  const bool is_limited = getrlimit(RLIMIT_NPROC, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
  return message(
      "RLIMIT_NPROC (ulimit -u) is ",
      is_limited ? std::to_string(limit.rlim_cur) : "unlimited",
      " for all processes of the user together, and control groups have a limit of their "
      "own (pids.max); raise it, or set OMP_NUM_THREADS and CpuConfig(threads=..., "
      "device_threads=...) to less");
}

void check_threads_can_start(std::int64_t count, const std::string& operation) {
  std::vector<std::thread> trial;
  std::atomic<bool> is_over{false};
  const auto end = [&] {
    is_over.store(true);
    is_over.notify_all();
    for (std::thread& thread : trial) {
      thread.join();
    }
  };
  try {
    trial.reserve(static_cast<std::size_t>(std::max<std::int64_t>(0, count)));
    while (static_cast<std::int64_t>(trial.size()) < count) {
      trial.emplace_back([&is_over] { is_over.wait(false); });
    }
  } catch (const std::system_error& error) {
    end();
    throw DeviceError(message("[",
                              operation,
                              "] ",
                              count,
                              " threads are needed, but the system starts only ",
                              trial.size(),
                              " (",
                              error.what(),
                              "); allowed: ",
                              thread_limits()));
  } catch (...) {
    end();
    throw;
  }
  end();
}

}  // namespace hybridgen
