// SPDX-License-Identifier: Apache-2.0
// How weights are filled: from a checkpoint's tensors, from files that are read where they are, or
// with made-up numbers.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <filesystem>
#include <utility>

#include "hybridgen/core/error.h"
#include "models/weights.h"

namespace hybridgen {
namespace {

bool is_loadable(at::ScalarType type) {
  return type == at::kFloat || type == at::kHalf || type == at::kBFloat16 || type == at::kDouble;
}

// In pieces: the comparison makes temporaries as large as its input, and embeddings are large.
bool is_finite(const at::Tensor& tensor) {
  constexpr std::int64_t kPiece = 1 << 20;
  const at::Tensor flat = tensor.view({-1});
  for (std::int64_t first = 0; first < flat.numel(); first += kPiece) {
    const std::int64_t count = std::min(kPiece, flat.numel() - first);
    if (!at::isfinite(flat.narrow(0, first, count)).all().item<bool>()) {
      return false;
    }
  }
  return true;
}

/// CheckpointError unless `from` can be copied to `to`: both or none are there, of one shape and
/// dtype, and finite.
void check_same(const char* part,
                const std::string& name,
                const at::Tensor& from,
                const at::Tensor& to) {
  const auto text = [](const at::Tensor& tensor) {
    return tensor.defined() ? message(c10::toString(tensor.scalar_type()), " ", tensor.sizes())
                            : std::string("none");
  };
  const bool are_there = from.defined() && to.defined();
  if (from.defined() != to.defined() ||
      (are_there && (from.sizes() != to.sizes() || from.scalar_type() != to.scalar_type()))) {
    throw CheckpointError(message("[load weights] ",
                                  part,
                                  " of tensor '",
                                  name,
                                  "' are ",
                                  text(from),
                                  "; the configuration asks for ",
                                  text(to),
                                  "; check that config.json belongs to these weights"));
  }
  if (are_there && from.is_floating_point() && !is_finite(from.contiguous())) {
    throw CheckpointError(message("[load weights] ",
                                  part,
                                  " of tensor '",
                                  name,
                                  "' hold NaN or infinity; the file is damaged"));
  }
}

// A pool of normal numbers, laid out again and again from shifting offsets: drawing each number of
// a large model would take minutes and nothing depends on their independence.
void fill_dummy(const at::Tensor& destination, const at::Tensor& pool, std::int64_t& offset) {
  const at::Tensor flat = destination.view({-1});
  std::int64_t filled = 0;
  while (filled < flat.numel()) {
    const std::int64_t count = std::min(flat.numel() - filled, pool.numel() - offset);
    flat.narrow(0, filled, count).copy_(pool.narrow(0, offset, count));
    filled += count;
    offset = (offset + count + 7919) % (pool.numel() / 2);
  }
}

}  // namespace

Weights::Slot& Weights::slot_to_load(const std::string& name) {
  Slot& found = const_cast<Slot&>(slot(name));  // of slots_, which is ours
  if (found.loaded) {
    throw CheckpointError(message("[load weights] tensor '", name, "' was given twice"));
  }
  return found;
}

void Weights::load_tensor(const std::string& name, const at::Tensor& tensor) {
  Slot& slot = slot_to_load(name);
  if (!is_loadable(tensor.scalar_type())) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' has dtype ",
                                  c10::toString(tensor.scalar_type()),
                                  "; allowed: float32, float16, bfloat16, float64"));
  }
  if (tensor.sizes() != at::IntArrayRef(slot.shape())) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' has shape ",
                                  tensor.sizes(),
                                  "; the configuration asks for ",
                                  at::IntArrayRef(slot.shape()),
                                  "; check that config.json belongs to these weights"));
  }
  if (slot.destination.is_coded()) {
    code(name, slot, tensor);
    slot.loaded = true;
    return;
  }
  at::Tensor loaded = slot.destination.dense;
  if (slot.streamed.empty()) {
    loaded.copy_(tensor);
  } else {
    loaded = tensor.to(at::kCPU, options_.dtype().toScalarType()).contiguous();
  }
  // Checked after the conversion: a value may overflow float16.
  if (!is_finite(loaded)) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' holds NaN or infinity as ",
                                  c10::toString(loaded.scalar_type()),
                                  "; the file is damaged, or needs dtype='float32' or 'bfloat16'"));
  }
  if (!slot.streamed.empty()) store(*slot.streamed.front(), loaded);
  slot.loaded = true;
}

void Weights::code(const std::string& name, Slot& slot, const at::Tensor& tensor) {
  LinearWeight coded = slot.destination;
  if (!slot.streamed.empty()) {
    for (at::Tensor* part : coded.tensors()) {
      *part = at::empty(part->sizes(), part->options().device(at::kCPU));
    }
  }
  if (!code_matrix(tensor, coded)) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' holds NaN, infinity, or numbers too large for scales of ",
                                  c10::toString(coded.scales.scalar_type()),
                                  "; the file is damaged, or needs another format of weights"));
  }
  for (std::size_t i = 0; i < slot.streamed.size(); ++i) {
    store(*slot.streamed[i], *coded.tensors()[i]);
  }
}

void Weights::load_coded(const std::string& name, const LinearWeight& coded) {
  Slot& slot = slot_to_load(name);
  const LinearWeight& own = slot.destination;
  if (!own.is_coded() || own.bits != coded.bits || own.group != coded.group) {
    throw CheckpointError(message(
        "[load weights] tensor '",
        name,
        "' has ",
        coded.bits,
        " bits in groups of ",
        coded.group,
        "; the model was made to hold ",
        own.is_coded() ? message(own.bits, " in groups of ", own.group) : std::string("numbers"),
        " there"));
  }
  check_same("codes", name, coded.codes, own.codes);
  check_same("scales", name, coded.scales, own.scales);
  check_same("minima", name, coded.minima, own.minima);
  LinearWeight from = coded;
  LinearWeight to = own;
  for (std::size_t i = 0; i < to.tensors().size(); ++i) {
    at::Tensor& tensor = *from.tensors()[i];
    if (slot.streamed.empty()) {
      to.tensors()[i]->copy_(tensor);
    } else {
      store(*slot.streamed[i], tensor.to(at::kCPU).contiguous());
    }
  }
  slot.loaded = true;
}

bool Weights::is_on_disk(const std::string& name) const {
  const Slot& found = slot(name);
  return !found.streamed.empty() && !found.destination.is_coded() &&
         !found.streamed.front()->host.defined();
}

void Weights::load_from_file(const std::string& name,
                             const std::string& path,
                             std::int64_t offset) {
  Slot& slot = slot_to_load(name);
  if (!is_on_disk(name)) {
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' is to be read out of ",
                                  path,
                                  "; allowed: tensors that lie on disk as numbers; load it"));
  }
  StreamedTensor& streamed = *slot.streamed.front();
  streamed.file_offset = streamed_.files->add(path, offset + streamed.bytes) + offset;
  slot.loaded = true;
  const at::Tensor& dense = slot.destination.dense;
  if (offset % dense.element_size() != 0 && options_.device().is_cpu()) {
    // The CPU, which may read it there, wants numbers at multiples of their size.
    const at::Tensor numbers = at::empty(dense.sizes(), dense.options().device(at::kCPU));
    const DiskRange range{.memory = static_cast<std::byte*>(numbers.mutable_data_ptr()),
                          .offset = streamed.file_offset,
                          .bytes = streamed.bytes};
    streamed_.files->read({&range, 1});
    store(streamed, numbers);
  }
}

void Weights::store(StreamedTensor& streamed, const at::Tensor& tensor) {
  const auto* const data = static_cast<const std::byte*>(tensor.const_data_ptr());
  const std::span<const std::byte> bytes(data, static_cast<std::size_t>(streamed.bytes));
  if (streamed.host.defined()) {
    std::ranges::copy(bytes, static_cast<std::byte*>(streamed.host.mutable_data_ptr()));
    return;
  }
  if (homes_.are_shared) {
    throw CheckpointError(
        "[load weights] weights are to be shared (WeightConfig(shared=True)), and no file has them "
        "as they are used; allowed: files in safetensors, or FlexGen's, that have numbers of the "
        "model's dtype at multiples of their size, and format='auto'; pass the checkpoint's own "
        "dtype, or leave shared out");
  }
  const std::string folder =
      homes_.folder.empty() ? std::filesystem::temp_directory_path().string() : homes_.folder;
  streamed.file_offset = streamed_.files->append(folder, bytes);
}

void Weights::load_dummy(std::uint64_t seed) {
  constexpr std::int64_t kPoolSize = 1 << 20;
  at::Generator generator = at::detail::createCPUGenerator(seed);
  const at::Tensor pool =
      at::empty({kPoolSize}, at::kFloat).normal_(0.0, 0.02, generator).to(options_.dtype());
  std::int64_t offset = 0;
  for (const std::string& name : order_) {
    Slot& slot = slots_.at(name);
    if (name.ends_with("norm.weight")) {
      slot.destination.dense.fill_(1.0);
    } else if (name.ends_with(".bias")) {
      slot.destination.dense.zero_();
    } else if (slot.streamed.empty() && !slot.destination.is_coded()) {
      fill_dummy(slot.destination.dense, pool, offset);
    } else {
      const at::Tensor dummy = at::empty(slot.shape(), options_.device(at::kCPU));
      fill_dummy(dummy, pool, offset);
      if (slot.destination.is_coded()) {
        code(name, slot, dummy);
      } else {
        store(*slot.streamed.front(), dummy);
      }
    }
    slot.loaded = true;
  }
}

void Weights::place_in_files(const std::string& name, LinearWeight& table) {
  if (!table.defined()) return;
  const std::vector<StreamedTensor*>& streamed = slots_.at(name).streamed;
  const std::vector<at::Tensor*> tensors = table.tensors();
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    *tensors[i] = in_file(*streamed[i], *tensors[i]);
  }
}

void Weights::finish() {
  std::string missing;
  std::size_t count = 0;
  for (const std::string& name : order_) {
    if (!slots_.at(name).loaded) {
      missing += (count++ == 0 ? "" : ", ") + name;
    }
  }
  if (count > 0) {
    throw CheckpointError(message("[load weights] ",
                                  count,
                                  " of ",
                                  order_.size(),
                                  " tensors are missing: ",
                                  missing,
                                  "; the checkpoint is incomplete"));
  }
  const std::scoped_lock lock(finish_mutex_);
  if (!streamed_.stays || are_tables_placed_) return;
  place_in_files("embed_tokens.weight", embed_tokens);
  place_in_files("embed_positions.weight", embed_positions);
  place_in_files("project_in.weight", project_in);
  place_in_files("project_out.weight", project_out);
  if (slots_.contains("lm_head.weight")) {
    place_in_files("lm_head.weight", lm_head);
  } else {
    lm_head = embed_tokens;
  }
  are_tables_placed_ = true;
}

}  // namespace hybridgen
