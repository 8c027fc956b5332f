// SPDX-License-Identifier: Apache-2.0
// FlexGen (Sheng et al., ICML 2023; FMInference/FlexLLMGen): keys and values live on the host and
// stream to the device layer by layer, the next layer's while this one computes.
#include "methods/method_config.h"
#include "methods/methods.h"

namespace hybridgen {

MethodInfo flexgen_info() {
  return {.name = "flexgen",
          .summary = "keys and values stream from the host, attention on the device",
          .attention = "device",
          .timing = "none",
          .exact_when = "attn_sparsity = 1",
          .drops = "nothing",
          .link = "K and V of every offloaded token; attn_sparsity < 1: V of some",
          .tunables = {{"gpu_share",
                        0.0,
                        "a float in [0, 1]",
                        "share of a prompt's tokens, the newest, that stay on the device; "
                        "KVConfig(device_tokens=) overrides it"},
                       {"attn_sparsity",
                        1.0,
                        "a float in (0, 1]",
                        "share of the tokens whose values are fetched: those with the largest "
                        "weights, which are not renormalised"}},
          .reads = {"device_tokens"}};
}

Method flexgen_method(const EngineOptions& options) {
  const MethodInfo info = flexgen_info();
  const MethodConfig config(info, options);
  const double gpu_share = config.number("gpu_share", 0.0, 1.0);
  Method method;
  method.name = info.name;
  method.residency = Residency::kWindow;
  method.rule = {HostQuery::kNone, PayloadKind::kKeysAndValues, HostChoice::kAll};
  method.value_share = config.number("attn_sparsity", 0.0, 1.0, /*open=*/true);
  if (method.value_share < 1.0) {
    method.rule.payload = PayloadKind::kKeysThenValues;
  }
  method.key_layout = KeyLayout::kRows;
  if (options.device_tokens != WindowSetting{}) {
    method.unread.emplace("gpu_share", "KVConfig(device_tokens=) says it; give one of them");
  }
  method.window = [gpu_share](const RequestShape& request) {
    return static_cast<std::int64_t>(gpu_share * static_cast<double>(request.prompt_tokens));
  };
  return method;
}

}  // namespace hybridgen
