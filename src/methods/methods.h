// SPDX-License-Identifier: Apache-2.0
// One file per method: what tables say about it, and its value built from options. method.cpp lists
// them.
#pragma once

#include <string>

#include "core/option_table.h"
#include "hybridgen/methods/method.h"

namespace hybridgen {

MethodInfo full_info();
Method full_method(const EngineOptions& options);
MethodInfo flexgen_info();
Method flexgen_method(const EngineOptions& options);
MethodInfo moe_lightning_info();
Method moe_lightning_method(const EngineOptions& options);
MethodInfo streaming_llm_info();
Method streaming_llm_method(const EngineOptions& options);
MethodInfo h2o_info();
Method h2o_method(const EngineOptions& options);
MethodInfo keyformer_info();
Method keyformer_method(const EngineOptions& options);
MethodInfo infinigen_info();
Method infinigen_method(const EngineOptions& options);
MethodInfo hgca_info();
Method hgca_method(const EngineOptions& options);
MethodInfo hybridgen_info();
Method hybridgen_method(const EngineOptions& options);

/// A method's own options: what the user set, checked against the method's table.
template <typename Options>
Options own_options(const OptionTable<Options>& table,
                    const MethodInfo& info,
                    const EngineOptions& options) {
  return table.read("method " + info.name, options.method_config);
}

/// Where the kept tokens of a method with a fixed budget live.
enum class Home : std::uint8_t { kDevice, kHost };
template <typename Options>
OptionRow<Options> home_option(Home Options::* member) {
  return option("home", member, {{"device", Home::kDevice}, {"host", Home::kHost}})
      .means("where the kept tokens live; \"host\" streams them every step");
}
inline constexpr const char* kShiftOnDevice =
    "keep the tokens on the device (home='device') to shift them";
/// What follows for such a method.
Method retaining_method(const MethodInfo& info, Home home);

}  // namespace hybridgen
