// SPDX-License-Identifier: Apache-2.0
// How the threads of an engine begin.
#pragma once

#include <functional>
#include <string>
#include <thread>

namespace hybridgen {

/// Starts a thread that runs `work`, which may not throw, and that is_engine_thread(). Returns when
/// touch_thread_local_data() is done there. Throws DeviceError, which calls the thread `which` and
/// names the limits, if it cannot be created.
std::thread start_engine_thread(const std::string& which, std::function<void()> work);

/// Whether the calling thread belongs to an engine: it runs work that somebody waits for.
bool is_engine_thread();

/// Has the calling thread's data of this library and of C++'s allocated. That happens on first use
/// otherwise, and glibc ends the process if memory is short then.
void touch_thread_local_data();

}  // namespace hybridgen
