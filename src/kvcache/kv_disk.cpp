// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_disk.h"

#include <algorithm>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr std::string_view kReading = "read keys and values from the disk";

}  // namespace

KvDisk::KvDisk(const KvDiskDevice& device, KvMemory& keys, KvMemory& values)
    : device_(device),
      num_layers_(keys.shape().num_layers),
      num_kv_heads_(keys.shape().num_kv_heads),
      loads_(static_cast<std::size_t>(num_layers_) * 2) {
  sides_[0].memory = &keys;
  sides_[1].memory = &values;
  for (Side& side : sides_) {
    side.blocks.resize(
        static_cast<std::size_t>(side.memory->blocks_for(side.memory->shape().capacity)));
  }
}

KvDisk::~KvDisk() { stop(); }

// The last block may be shorter; what lies behind it up to the page is its own.
std::int64_t KvDisk::unit_bytes(const KvMemory& memory, std::int64_t block) {
  const std::int64_t begin = block * memory.block_tokens();
  const std::int64_t tokens = std::min(memory.block_tokens(), memory.shape().capacity - begin);
  return round_up_to_disk_page(tokens * memory.shape().row_bytes);
}

void KvDisk::append_unit(const Side& side,
                         std::int64_t block,
                         const DiskSlot& slot,
                         std::int64_t layer,
                         std::int64_t kv_head,
                         std::vector<DiskRange>& ranges) const {
  KvMemory& memory = *side.memory;
  const std::int64_t unit = unit_bytes(memory, block);
  slot.append_ranges(
      (layer * num_kv_heads_ + kv_head) * unit,
      unit,
      memory.head(layer, kv_head) + block * memory.block_tokens() * memory.shape().row_bytes,
      ranges);
}

bool KvDisk::is_out(const Side& side, std::int64_t block, std::int64_t layer) const {
  const Block& asked = side.blocks[static_cast<std::size_t>(block)];
  return asked.state == State::kOut && asked.is_out[static_cast<std::size_t>(layer)] != 0;
}

void KvDisk::write(KvSide which, std::int64_t block) {
  Side& side = side_of(which);
  Block& written = block_of(which, block);
  {
    const std::scoped_lock lock(mutex_);
    if (written.state == State::kBack) written.state = State::kCopied;  // nothing has changed since
    if (written.state != State::kInMemory) return;
  }
  DiskSlot slot = device_.file->take(num_layers_ * num_kv_heads_ * unit_bytes(*side.memory, block));
  DiskTransfer transfer;
  transfer.direction = DiskTransfer::Direction::kWrite;
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    for (std::int64_t g = 0; g < num_kv_heads_; ++g) {
      append_unit(side, block, slot, layer, g, transfer.ranges);
    }
  }
  device_.queue->submit(transfer);
  device_.queue->wait(transfer);
  const std::scoped_lock lock(mutex_);
  written.is_out.assign(static_cast<std::size_t>(num_layers_), 0);
  written.slot = std::move(slot);
  written.state = State::kCopied;
}

void KvDisk::leave(KvSide which, std::int64_t block) noexcept {
  Side& side = side_of(which);
  Block& leaving = block_of(which, block);
  const std::scoped_lock lock(mutex_);
  if (leaving.state == State::kCopied) {
    leaving.state = State::kOut;
    ++side.num_out;
  }
  if (leaving.state != State::kOut) return;
  std::ranges::fill(leaving.is_out, std::uint8_t{1});
  side.memory->give_back({block, block + 1});
}

bool KvDisk::bring_back(KvSide which, std::int64_t block, const PagePlace& place) {
  Block& coming = block_of(which, block);
  {
    const std::scoped_lock lock(mutex_);
    if (coming.state == State::kCopied) coming.state = State::kBack;
    if (coming.state != State::kOut) return false;
  }
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    bring_layer_back(which, block, layer, place);
  }
  const std::scoped_lock lock(mutex_);
  coming.state = State::kBack;
  --side_of(which).num_out;
  return true;
}

void KvDisk::bring_layer_back(KvSide which,
                              std::int64_t block,
                              std::int64_t layer,
                              const PagePlace& place) {
  Side& side = side_of(which);
  Block& coming = block_of(which, block);
  std::uint8_t& is_out = coming.is_out[static_cast<std::size_t>(layer)];
  {
    std::unique_lock lock(mutex_);
    if (is_out == 0) return;  // since an earlier try
    // Readers of this layer have the same addresses for themselves until they release them.
    changed_.wait(lock, [&] { return is_stopping_ || !load_of(layer, which).is_begun; });
    if (is_stopping_) {
      throw DeviceError("[read keys and values from the disk] the request ended meanwhile");
    }
    coming_back_ = layer;
  }
  const auto end = [&](bool is_back) {
    const std::scoped_lock lock(mutex_);
    if (is_back) is_out = 0;
    coming_back_.reset();
    changed_.notify_all();
  };
  try {
    side.memory->take({block, block + 1}, place, kReading, layer);
    DiskTransfer transfer;
    transfer.layer = static_cast<std::int32_t>(layer);
    for (std::int64_t g = 0; g < num_kv_heads_; ++g) {
      append_unit(side, block, coming.slot, layer, g, transfer.ranges);
    }
    device_.queue->submit(transfer);
    device_.queue->wait(transfer);
  } catch (...) {
    side.memory->give_back({block, block + 1}, layer);
    end(/*is_back=*/false);
    throw;
  }
  end(/*is_back=*/true);
}

void KvDisk::arrive(KvSide which, std::int64_t block) noexcept {
  Block& arrived = block_of(which, block);
  const std::scoped_lock lock(mutex_);
  if (arrived.state == State::kBack) arrived = {};
}

void KvDisk::wait_until_none_comes_back(std::int64_t layer, std::unique_lock<std::mutex>& lock) {
  changed_.wait(lock, [&] { return coming_back_ != layer; });
}

// Memory for blocks that have none for this layer, in as few calls as there are runs.
void KvDisk::take(Side& side,
                  Load& load,
                  std::int64_t layer,
                  std::span<const std::int64_t> blocks) {
  load.is_begun = true;
  load.is_taken.resize(side.blocks.size());
  load.is_in.resize(side.blocks.size() * static_cast<std::size_t>(num_kv_heads_));
  for (std::size_t i = 0; i < blocks.size();) {
    std::size_t end = i + 1;
    while (end < blocks.size() && blocks[end] == blocks[end - 1] + 1) ++end;
    // Without nodes to be on, memory comes as it is read into; asking each time whether there is
    // any takes longer than a read.
    if (!device_.place.nodes.empty() || !has_asked_) {
      side.memory->take({blocks[i], blocks[end - 1] + 1}, device_.place, kReading, layer);
      has_asked_ = true;
    }
    for (; i < end; ++i) load.is_taken[static_cast<std::size_t>(blocks[i])] = 1;
  }
}

void KvDisk::begin(std::int64_t layer, KvSide which, std::unique_lock<std::mutex>& lock) {
  Side& side = side_of(which);
  Load& load = load_of(layer, which);
  wait_until_none_comes_back(layer, lock);
  if (load.all != nullptr) return;
  std::vector<std::int64_t> missing;
  for (std::int64_t block = 0; block < static_cast<std::int64_t>(side.blocks.size()); ++block) {
    const bool is_taken = load.is_begun && load.is_taken[static_cast<std::size_t>(block)] != 0;
    if (is_out(side, block, layer) && !is_taken) missing.push_back(block);
  }
  take(side, load, layer, missing);
  auto all = std::make_unique<DiskTransfer>();
  all->layer = static_cast<std::int32_t>(layer);
  for (std::int64_t block = 0; block < static_cast<std::int64_t>(side.blocks.size()); ++block) {
    if (load.is_taken[static_cast<std::size_t>(block)] == 0) continue;
    for (std::int64_t g = 0; g < num_kv_heads_; ++g) {
      std::uint8_t& is_in = load.is_in[static_cast<std::size_t>(block * num_kv_heads_ + g)];
      if (is_in != 0) continue;
      append_unit(
          side, block, side.blocks[static_cast<std::size_t>(block)].slot, layer, g, all->ranges);
    }
  }
  load.all = std::move(all);
  device_.queue->submit(*load.all);
}

void KvDisk::expect(std::int64_t layer, KvSide side) {
  if (num_blocks(side) == 0) return;
  std::unique_lock lock(mutex_);
  begin(layer, side, lock);
}

void KvDisk::bring_all(std::int64_t layer, KvSide side) {
  DiskTransfer* all = nullptr;
  {
    std::unique_lock lock(mutex_);
    begin(layer, side, lock);
    all = load_of(layer, side).all.get();
  }
  device_.queue->wait(*all);
}

void KvDisk::bring_tokens(std::int64_t layer,
                          KvSide which,
                          std::int64_t kv_head,
                          std::span<const std::int32_t> tokens) {
  Side& side = side_of(which);
  Load& load = load_of(layer, which);
  DiskTransfer some;
  some.layer = static_cast<std::int32_t>(layer);
  std::vector<std::int64_t> blocks;
  std::vector<std::int64_t> without_memory;
  {
    std::unique_lock lock(mutex_);
    wait_until_none_comes_back(layer, lock);
    if (load.all != nullptr) {
      DiskTransfer& all = *load.all;
      lock.unlock();
      device_.queue->wait(all);
      return;
    }
    const std::int64_t each = side.memory->block_tokens();
    std::int64_t seen = -1;
    for (const std::int32_t token : tokens) {
      const std::int64_t block = token / each;
      if (block == seen) continue;
      seen = block;
      if (!is_out(side, block, layer)) continue;
      const auto index = static_cast<std::size_t>(block);
      const bool is_taken = load.is_begun && load.is_taken[index] != 0;
      if (is_taken && load.is_in[index * static_cast<std::size_t>(num_kv_heads_) +
                                 static_cast<std::size_t>(kv_head)] != 0) {
        continue;
      }
      if (!is_taken) without_memory.push_back(block);
      blocks.push_back(block);
      append_unit(side, block, side.blocks[index].slot, layer, kv_head, some.ranges);
    }
    if (blocks.empty()) return;
    take(side, load, layer, without_memory);
  }
  device_.queue->submit(some);
  device_.queue->wait(some);
  const std::scoped_lock lock(mutex_);
  for (const std::int64_t block : blocks) {
    load.is_in[static_cast<std::size_t>(block * num_kv_heads_ + kv_head)] = 1;
  }
}

void KvDisk::release(std::int64_t layer,
                     KvSide which,
                     std::unique_lock<std::mutex>& lock) noexcept {
  Load& load = load_of(layer, which);
  if (!load.is_begun) return;
  if (load.all != nullptr) {
    // Not under the lock, which the threads of others' reads do not need but their readers do.
    DiskTransfer& all = *load.all;
    lock.unlock();
    device_.queue->cancel(all);
    lock.lock();
  }
  const auto count = static_cast<std::int64_t>(load.is_taken.size());
  for (std::int64_t block = 0; block < count;) {
    std::int64_t end = block;
    while (end < count && load.is_taken[static_cast<std::size_t>(end)] != 0) ++end;
    if (end > block) side_of(which).memory->give_back({block, end}, layer);
    block = end + 1;
  }
  load = {};
  changed_.notify_all();
}

void KvDisk::release(std::int64_t layer) noexcept {
  std::unique_lock lock(mutex_);
  release(layer, KvSide::kKeys, lock);
  release(layer, KvSide::kValues, lock);
}

void KvDisk::release_all() noexcept {
  {
    const std::scoped_lock lock(mutex_);
    has_asked_ = false;
  }
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) release(layer);
}

void KvDisk::stop() noexcept {
  {
    const std::scoped_lock lock(mutex_);
    is_stopping_ = true;
    changed_.notify_all();
  }
  release_all();
}

std::int64_t KvDisk::num_layers_read() const {
  const std::scoped_lock lock(mutex_);
  std::int64_t count = 0;
  for (std::size_t i = 0; i < loads_.size(); i += 2) {
    count += loads_[i].is_begun || loads_[i + 1].is_begun ? 1 : 0;
  }
  return count;
}

}  // namespace hybridgen
