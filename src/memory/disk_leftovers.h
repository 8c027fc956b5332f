// SPDX-License-Identifier: Apache-2.0
// Files that a process which was ended between two calls left in a disk tier's folder. Only needed
// where the file system has no unnamed files; a name then lives from the file's creation to the
// next call.
#pragma once

#include <filesystem>
#include <string>

#include "memory/disk_calls.h"

namespace hybridgen {

/// A name that no other file of this process has: prefix, process, when that started, a number.
std::string new_disk_file_name();

/// Removes the regular files of this user in `folder` that are named so and whose process is no
/// more, or is another one that got its number since. Touches nothing else; what cannot be removed
/// or read stays. Returns how many it removed. `processes` replaces /proc in tests.
int sweep_disk_leftovers(const std::string& folder,
                         DiskCalls& calls,
                         const std::filesystem::path& processes = "/proc");

}  // namespace hybridgen
