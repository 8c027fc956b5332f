// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/methods/method.h"

#include <array>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "methods.h"

namespace hybridgen {
namespace {

struct Entry {
  MethodInfo (*info)();
  Method (*build)(const EngineOptions&);
};

constexpr std::array kMethods = {Entry{full_info, full_method},
                                 Entry{hybridgen_info, hybridgen_method},
                                 Entry{flexgen_info, flexgen_method},
                                 Entry{moe_lightning_info, moe_lightning_method},
                                 Entry{streaming_llm_info, streaming_llm_method},
                                 Entry{h2o_info, h2o_method},
                                 Entry{keyformer_info, keyformer_method},
                                 Entry{infinigen_info, infinigen_method},
                                 Entry{hgca_info, hgca_method}};

}  // namespace

Method make_method(const EngineOptions& options) {
  std::vector<std::string> names;
  std::string allowed;
  for (const Entry& entry : kMethods) {
    const std::string name = entry.info().name;
    if (name == options.method) {
      return entry.build(options);
    }
    allowed += (allowed.empty() ? "" : ", ") + name;
    names.push_back(name);
  }
  const std::string nearest = nearest_name(options.method, names);
  throw ConfigError(message("[method] '",
                            options.method,
                            "' is not known; allowed: ",
                            allowed,
                            nearest.empty() ? "" : "; did you mean '" + nearest + "'?"));
}

std::vector<MethodInfo> list_methods() {
  std::vector<MethodInfo> methods;
  for (const Entry& entry : kMethods) {
    methods.push_back(entry.info());
  }
  return methods;
}

}  // namespace hybridgen
