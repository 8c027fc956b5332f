// SPDX-License-Identifier: Apache-2.0
// What must hold in a process that is short of something: tried in a forked child.
#pragma once

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>

namespace hybridgen {

/// Whether `check` is true in a forked child.
inline bool holds_in_child(const std::function<bool()>& check) {
  const pid_t child = fork();
  if (child == 0) {
    _exit(check() ? 0 : 1);
  }
  int status = -1;
  return waitpid(child, &status, 0) == child && status == 0;
}

/// Forbids this process to start threads. The limit does not hold for root.
inline bool forbid_threads() {
  const rlimit none{1, 1};
  const uid_t nobody = 65534;
  return (geteuid() != 0 || setresuid(nobody, nobody, nobody) == 0) &&
         setrlimit(RLIMIT_NPROC, &none) == 0;
}

}  // namespace hybridgen
