// SPDX-License-Identifier: Apache-2.0
// What threads of ours have to know of the process they live in.
#pragma once

#include <sys/types.h>
#include <unistd.h>

#include <cstdint>
#include <string>

namespace hybridgen {

/// Remembers the process that made its owner. A forked child has a copy of the owner but none of
/// its threads: it can neither use nor join them.
class MakerProcess {
 public:
  bool is_this_one() const { return getpid() == id_; }

 private:
  pid_t id_ = getpid();
};

/// What limits the threads of this process and how to do with fewer, for messages.
std::string thread_limits();

/// Throws DeviceError, naming the limit, unless `count` threads more can be started now. To be
/// called before work that OpenMP starts threads for: it ends the process if it cannot.
void check_threads_can_start(std::int64_t count, const std::string& operation);

}  // namespace hybridgen
