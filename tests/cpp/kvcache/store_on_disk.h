// SPDX-License-Identifier: Apache-2.0
// A store of which every second block of keys and of values lies on the disk.
#pragma once

#include <cstdint>
#include <utility>

#include "cpp/memory/faulty_disk.h"
#include "kvcache/host_kv_store.h"
#include "memory/disk_file.h"
#include "memory/disk_queue.h"

namespace hybridgen {

struct StoreOnDisk {
  /// Nobody writes to `whole` any more.
  explicit StoreOnDisk(HostKvStore whole) : store(std::move(whole)) {
    store.use_disk({.file = &file, .queue = &queue});
    for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
      for (std::int64_t block = 0; block < store.memory(side).num_blocks(); block += 2) {
        store.disk()->write(side, block);
        store.disk()->leave(side, block);
      }
    }
  }

  TestFolder folder;
  TraceRecorder trace;
  DiskFile file{folder.string(), std::int64_t{64} << 20};
  DiskQueue queue{file, trace};
  HostKvStore store;
};

}  // namespace hybridgen
