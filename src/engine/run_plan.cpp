// SPDX-License-Identifier: Apache-2.0
#include "engine/run_plan.h"

#include <algorithm>
#include <array>
#include <utility>

#include "device/device_memory.h"
#include "device/resident_cache.h"
#include "engine/admission.h"
#include "engine/host_threads.h"
#include "engine/largest.h"
#include "engine/method_checks.h"
#include "engine/request.h"
#include "engine/resolved_options.h"
#include "hybridgen/core/error.h"
#include "memory/disk_file.h"
#include "models/weight_homes.h"
#include "models/weight_store.h"
#include "pipeline/working_memory.h"
#include "runtime/cpus.h"

namespace hybridgen {
namespace {

/// One engine's rules with everything that they refer to.
struct Rules {
  Rules(const ModelConfig& config_,
        DType dtype_,
        const DeviceContext& device_,
        bool are_loaded,
        const EngineOptions& asked,
        std::optional<Method> composition,
        const WeightFormats& formats)
      : config(config_),
        dtype(dtype_),
        device(device_),
        weights(
            config_, dtype_, at::kMeta, weight_homes(formats, config_, dtype_, device_), formats),
        options(asked),
        method(checked_method(asked, std::move(composition), config_)),
        attended(attended_tokens(method, hybridgen_options(asked))),
        budgets(make_budgets(asked,
                             device_,
                             lower_tiers(asked, host_tiers(available_cpus())),
                             are_loaded ? ComingWeights{} : all_weights())),
        coming(are_loaded ? ComingWeights{} : all_weights()) {
    if (!asked.tiers.disk_path.empty()) {
      check_disk_room(asked.tiers.disk_path, asked.tiers.disk_bytes);
    }
    if (options.max_model_len == 0) options.max_model_len = config.max_positions;
  }

  const ModelConfig& config;
  DType dtype;
  const DeviceContext& device;
  Weights weights;  ///< without memory
  EngineOptions options;
  Method method;
  AttendedTokens attended;
  Budgets budgets;
  ComingWeights coming;

  Admission admission(std::int64_t engine_bytes) {
    return {.config = config,
            .dtype = dtype,
            .device_is_host = device.is_cpu(),
            .options = options,
            .method = method,
            .attended = attended,
            .budgets = budgets,
            .engine_bytes = engine_bytes,
            .reads_together = WeightStore::streams(weights, device),
            .coming_bytes = coming.host};
  }
  ComingWeights all_weights() const {
    const std::int64_t device_bytes = weights.device_bytes();
    const std::int64_t host_bytes = weights.streamed().host_bytes;
    return device.is_cpu() ? ComingWeights{.host = device_bytes + host_bytes}
                           : ComingWeights{.device = device_bytes, .host = host_bytes};
  }
  std::int64_t dram_capacity() const { return budgets[TierKind::kDram].capacity_bytes(); }
};

RequestShape request_shape(const Rules& rules, std::int64_t prompt, std::int64_t fresh) {
  return {.request_id = 0,
          .prompt_tokens = prompt,
          .max_tokens = std::min(prompt + fresh, rules.options.max_model_len)};
}

/// The plan of each of `count` requests that run together: with a narrower window, where running
/// ones may shrink and have to.
RequestPlan among(const Admission& admission, const RequestPlan& plan, std::int64_t count) {
  const std::int64_t least = admission.least_window(plan.window);
  if (least >= plan.window || Admission::on_device(plan, count) <= admission.room()) return plan;
  const std::int64_t widest = admission.largest_window(plan.shape, count);
  return admission.plan_with(plan.shape, std::clamp(widest, least, plan.window));
}

/// Settings that let `count` requests of this shape run together, by those that the user has not
/// decided or has to change; nothing if there are none.
std::optional<NearestSetting> setting_for(Rules& rules,
                                          const Admission& admission,
                                          const RequestShape& shape,
                                          std::int64_t count) {
  NearestSetting setting{.batch_size = count, .prompt_tokens = shape.prompt_tokens};
  RequestPlan plan = among(admission, admission.plan(shape), count);
  if (rules.method.residency == Residency::kWindow && !rules.method.window.tokens &&
      Admission::on_device(plan, count) > admission.room()) {
    setting.device_tokens = admission.largest_window(shape, count);
    plan = admission.plan_with(shape, *setting.device_tokens);
    if (*setting.device_tokens == 0) return {};
  }
  const HostRoom room = admission.host_room();
  if (admission.holds(plan, count, room)) return setting;
  setting.dram_bytes = admission.least_dram(plan, count, room);
  if (!setting.dram_bytes) return {};
  return setting;
}

/// Those for all of the batch, else for as many as can be, else for as long prompts as can be.
std::optional<NearestSetting> nearest_setting(Rules& rules,
                                              const Admission& admission,
                                              const RunShape& run) {
  const RequestShape shape = request_shape(rules, run.prompt_tokens, run.new_tokens);
  const std::int64_t count = largest(run.batch_size, [&](std::int64_t requests) {
    return setting_for(rules, admission, shape, requests).has_value();
  });
  if (count > 0) return setting_for(rules, admission, shape, count);
  const auto shorter = [&](std::int64_t prompt) {
    return setting_for(rules, admission, request_shape(rules, prompt, run.new_tokens), 1);
  };
  const std::int64_t prompt =
      largest(run.prompt_tokens, [&](std::int64_t tokens) { return shorter(tokens).has_value(); });
  return prompt > 0 ? shorter(prompt) : std::nullopt;
}

TierPlan device_tier(const Rules& rules,
                     const RequestPlan& plan,
                     std::int64_t together,
                     std::int64_t engine_bytes) {
  const std::int64_t resident = ResidentCache::required_bytes(
      rules.config, rules.dtype, resident_capacity(rules.method, plan));
  const bool is_host = rules.device.is_cpu();
  const std::int64_t payload =
      is_host ? 0 : 2 * HostStaging::payload_bytes(rules.config, rules.dtype, plan.staging);
  TierPlan tier{.tier = TierKind::kDevice,
                .capacity = rules.budgets[TierKind::kDevice].capacity_bytes(),
                .weights = rules.weights.device_bytes()};
  tier.keys = together * resident / 2;
  tier.values = tier.keys;
  tier.staging = together * payload;
  tier.workspaces = together * (plan.device_bytes - resident - payload);
  tier.engine = engine_bytes + plan.prompt_device_bytes + plan.momentary_device_bytes;
  return tier;
}

TierPlan dram_tier(const Rules& rules, const RequestPlan& plan, std::int64_t together) {
  TierPlan tier{.tier = TierKind::kDram,
                .capacity = rules.dram_capacity(),
                .weights = rules.weights.streamed().host_bytes};
  tier.weights +=
      WeightStore::host_bytes(rules.weights, rules.device, layers_at_a_time(rules.method));
  if (plan.max_offloaded == 0) return tier;
  const HostKvShape shape = host_shape(rules.config, rules.dtype, rules.method, plan);
  const std::int64_t keys = HostKvStore::required_key_bytes(shape);
  const std::int64_t both = HostKvStore::required_bytes(shape);
  tier.keys = together * keys;
  tier.values = together * (both - keys);
  tier.staging = together * (plan.dram_bytes - both);
  return tier;
}

/// What DRAM has no room for goes below it: values first, or half of both where they lie by turns.
void spread(const Rules& rules, std::vector<TierPlan>& tiers) {
  for (const TierKind lower : {TierKind::kCxl, TierKind::kDisk}) {
    if (!rules.budgets.has(lower)) continue;
    TierPlan& above = tiers.back();
    TierPlan below{.tier = lower, .capacity = rules.budgets[lower].capacity_bytes()};
    if (rules.options.tiers.placement == KvPlacement::kInterleave && lower == TierKind::kCxl) {
      below.keys = above.keys / 2;
      below.values = above.values / 2;
    } else {
      const std::int64_t over = std::max<std::int64_t>(0, above.of_requests() - above.capacity);
      below.values = std::min(over, above.values);
      below.keys = std::min(over - below.values, above.keys);
    }
    above.keys -= below.keys;
    above.values -= below.values;
    tiers.push_back(below);
  }
}

void add_disk_weights(const Rules& rules, std::vector<TierPlan>& tiers) {
  const std::int64_t bytes = rules.weights.disk_bytes();
  if (bytes == 0) return;
  if (tiers.back().tier != TierKind::kDisk) tiers.push_back({.tier = TierKind::kDisk});
  tiers.back().weights = bytes;
}

/// Why weights that are yet to be loaded cannot be; empty if they can.
std::string weights_problem(const Rules& rules) {
  const auto problem = [&](std::int64_t needed, const char* where, std::int64_t free) {
    if (needed <= free) return std::string();
    const auto shown = [](std::int64_t bytes) { return human_bytes(static_cast<double>(bytes)); };
    return message("[plan] the weights take ",
                   shown(needed),
                   " in ",
                   name_of(rules.dtype),
                   "; ",
                   where,
                   " has ",
                   shown(free),
                   "; free memory, or pass ",
                   rules.dtype == DType::kFloat32 ? "dtype='bfloat16' or " : "",
                   "a smaller model, or let some lie elsewhere: "
                   "weights=WeightConfig(device='auto')");
  };
  std::string found = problem(rules.coming.host, "the host", available_host_bytes());
  if (found.empty() && rules.coming.device > 0) {
    found =
        problem(rules.coming.device, "the device", available_device_bytes(rules.device.device()));
  }
  return found;
}

/// Why nothing runs that an empty machine has room for.
std::string what_others_have() {
  return message("[plan] other engines of this process hold ",
                 human_bytes(static_cast<double>(ProcessMemory::instance().used())),
                 " of memory, weights included; allowed: what is free beside that; close them, or "
                 "run fewer or shorter requests");
}

/// What a CPU device's operations take, which no budget counts.
std::int64_t working_bytes(const Rules& rules, const RequestPlan& plan, std::int64_t together) {
  const EngineOptions& options = rules.options;
  const bool offloads = rules.method.offloads();
  const auto cores = static_cast<std::int64_t>(available_cpus().size());
  const ThreadCounts threads =
      resolve_threads({.host = options.threads, .device = options.device_threads},
                      /*device_is_cpu=*/true,
                      offloads,
                      cores);
  return host_working_bytes(rules.config,
                            rules.dtype,
                            rules.method,
                            plan,
                            {.prefill = std::min(options.prefill_chunk, plan.shape.prompt_tokens),
                             .scored = 1,
                             .decode = std::min(together, options.max_batch)},
                            threads.host);
}

}  // namespace

RunPlan plan_run(const ModelConfig& config,
                 DType dtype,
                 const DeviceContext& device,
                 bool are_loaded,
                 const EngineOptions& asked,
                 std::optional<Method> composition,
                 const RunShape& shape,
                 const WeightFormats& formats) {
  Rules rules(config, dtype, device, are_loaded, asked, std::move(composition), formats);
  check_length(shape.prompt_tokens, 0, rules.options.max_model_len);
  const RequestShape request = request_shape(rules, shape.prompt_tokens, shape.new_tokens);
  RunPlan run;
  std::int64_t engine_bytes = 0;
  if (!are_loaded) run.problem = weights_problem(rules);
  try {
    engine_bytes =
        engine_bytes_of_device(config, dtype, device.is_cpu(), rules.options, rules.budgets) +
        bytes_of_coming_layers(rules.weights, rules.device, rules.method, rules.budgets);
  } catch (const OutOfMemoryError& error) {
    if (run.problem.empty()) run.problem = error.what();
  }
  const Admission admission = rules.admission(engine_bytes);
  RequestPlan plan = admission.plan(request);
  const std::int64_t wanted = std::min(shape.batch_size, rules.options.max_batch);
  if (run.problem.empty()) {
    try {
      admission.check_positions(request, shape.prompt_tokens);
      admission.check_fits(request);
      const HostRoom room = admission.host_room();
      run.together = largest(wanted, [&](std::int64_t count) {
        return admission.holds(among(admission, plan, count), count, room);
      });
      plan = among(admission, plan, run.together);
      if (run.together == 0) run.problem = what_others_have();
    } catch (const OutOfMemoryError& error) {
      run.problem = error.what();
    }
    if (run.together < wanted) {
      RunShape smaller = shape;
      smaller.batch_size = wanted;
      run.nearest = nearest_setting(rules, admission, smaller);
    }
  }
  run.window = plan.window;
  run.offloaded = plan.max_offloaded;
  const std::int64_t counted = std::max<std::int64_t>(run.together, 1);
  run.tiers = {device_tier(rules, plan, counted, engine_bytes), dram_tier(rules, plan, counted)};
  spread(rules, run.tiers);
  add_disk_weights(rules, run.tiers);
  if (device.is_cpu()) run.tiers[0].engine += working_bytes(rules, plan, counted);
  return run;
}

}  // namespace hybridgen
