// SPDX-License-Identifier: Apache-2.0
// FlexGen (Sheng et al., ICML 2023; FMInference/FlexLLMGen): keys and values live on the host and
// stream to the device layer by layer, the next layer's while this one computes.
#include "methods/methods.h"
#include "parts/parts.h"

namespace hybridgen {

namespace {

struct FlexGenOptions {
  double gpu_share = 0.0;
  double attn_sparsity = 1.0;
};

const OptionTable<FlexGenOptions>& table() {
  using O = FlexGenOptions;
  static const OptionTable<O> rows(
      {option("gpu_share", &O::gpu_share, kShare)
           .means("share of a prompt's tokens, the newest, that stay on the device; "
                  "KVConfig(device_tokens=) overrides it"),
       option("attn_sparsity", &O::attn_sparsity, kPositiveShare)
           .means("share of the tokens whose values are fetched: those with the largest weights, "
                  "which are not renormalised")});
  return rows;
}

}  // namespace

MethodInfo flexgen_info() {
  return {.name = "flexgen",
          .class_name = "FlexGen",
          .summary = "keys and values stream from the host, attention on the device",
          .attention = "device",
          .timing = "none",
          .exact_when = "attn_sparsity = 1",
          .drops = "nothing",
          .link = "K and V of every offloaded token; attn_sparsity < 1: V of some",
          .tunables = table().described(),
          .reads = {"device_tokens", "keys", "values"}};
}

Method flexgen_method(const EngineOptions& options) {
  const MethodInfo info = flexgen_info();
  const FlexGenOptions own = own_options(table(), info, options);
  Method method;
  method.name = info.name;
  method.residency = Residency::kWindow;
  method.work = Fetch{HostQuery::kNone, AllTokens{}};
  if (own.attn_sparsity < 1.0) {
    method.work = FetchKeys{};
    method.parts.push_back(sparse_values_part(own.attn_sparsity));
  }
  method.key_layout = KeyLayout::kRows;
  if (options.device_tokens != WindowSetting{}) {
    method.unread.emplace("gpu_share", "KVConfig(device_tokens=) says it; give one of them");
  }
  method.window.tokens = [gpu_share = own.gpu_share](const RequestShape& request) {
    return static_cast<std::int64_t>(gpu_share * static_cast<double>(request.prompt_tokens));
  };
  return method;
}

}  // namespace hybridgen
