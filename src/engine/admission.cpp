// SPDX-License-Identifier: Apache-2.0
#include "admission.h"

#include <algorithm>
#include <string>

#include "hybridgen/core/error.h"
#include "hybridgen/pipeline/resident_cache.h"

namespace hybridgen {

RequestPlan Admission::plan(const RequestShape& shape, std::int64_t free_device_bytes) const {
  const ModelConfig& config = model.config();
  const WindowSetting& setting = options.device_tokens;
  std::int64_t window = -1;
  if (setting.count) {
    window = *setting.count;
  } else if (setting.share) {
    window = static_cast<std::int64_t>(*setting.share * static_cast<double>(shape.prompt_tokens));
  } else if (method.window) {
    window = method.window(shape);
  } else {
    // As many as fit; what a window needs is linear in its rows.
    const std::int64_t row = ResidentCache::required_bytes(config, model.dtype(), 1);
    const std::int64_t rows = free_device_bytes / row;
    window = rows >= shape.max_tokens ? shape.max_tokens
                                      : rows - ResidentCache::capacity_for(0, shape.max_tokens);
  }
  return plan_request(
      config, model.dtype(), method, attended, shape, std::max<std::int64_t>(window, 1));
}

void Admission::check_fits(const RequestShape& shape) const {
  const RequestPlan needed = plan(shape, device_budget.capacity_bytes());
  const auto too_large =
      [&](std::int64_t bytes, const MemoryBudget& budget, const std::string& way_out) {
        if (bytes > budget.capacity_bytes()) {
          const auto tokens = static_cast<std::int64_t>(
              static_cast<double>(shape.max_tokens) * static_cast<double>(budget.capacity_bytes()) /
              static_cast<double>(bytes));
          throw OutOfMemoryError(message("[add request] ",
                                         shape.prompt_tokens,
                                         " prompt + ",
                                         shape.max_tokens - shape.prompt_tokens,
                                         " generated tokens need ",
                                         human_bytes(static_cast<double>(bytes)),
                                         " of ",
                                         name_of(budget.tier()),
                                         "; its capacity is ",
                                         human_bytes(static_cast<double>(budget.capacity_bytes())),
                                         "; nearest that fits: about ",
                                         tokens,
                                         " tokens in all, or ",
                                         way_out));
        }
      };
  const std::int64_t row = ResidentCache::required_bytes(model.config(), model.dtype(), 1);
  const std::int64_t fitting = std::max<std::int64_t>(
      0, device_budget.capacity_bytes() / row - ResidentCache::capacity_for(0, shape.max_tokens));
  too_large(needed.device_bytes + needed.prompt_device_bytes,
            device_budget,
            method.residency == Residency::kWindow
                ? message("KVConfig(device_tokens=", fitting, ")")
                : message("method='hybridgen' with KVConfig(device_tokens=", fitting, ")"));
  too_large(needed.dram_bytes,
            dram_budget,
            message("KVConfig(dram=", needed.dram_bytes, ") or a larger device_tokens"));
}

void Admission::check_positions(const RequestShape& shape, std::int64_t prefill_tokens) const {
  const std::int64_t known = model.config().max_positions;
  if (shape.max_tokens <= known + 1) {
    return;  // the last token is never fed back
  }
  if (prefill_tokens > known) {
    throw ConfigError(message("[add request] the prompt has ",
                              prefill_tokens,
                              " tokens, which the model reads at their own positions; allowed: at "
                              "most ",
                              known,
                              " (the model's positions); shorten it, or pass decode_prompt_tokens=",
                              prefill_tokens - known,
                              " or more"));
  }
  const RequestPlan needed = plan(shape, device_budget.capacity_bytes());
  const std::int64_t cached = std::max(needed.window, needed.max_offloaded + 1);
  if (cached > known) {
    throw ConfigError(message("[add request] ",
                              shape.max_tokens,
                              " tokens of which ",
                              cached,
                              " may be cached have positions up to ",
                              cached - 1,
                              "; allowed: less than ",
                              known,
                              " (the model's positions); keep fewer tokens, or set max_model_len "
                              "to ",
                              known));
  }
}

}  // namespace hybridgen
