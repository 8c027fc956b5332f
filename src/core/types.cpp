// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/types.h"

#include <stdexcept>

#include "hybridgen/core/error.h"

namespace hybridgen {

namespace {

// Reached only with a value outside the enumeration, which is a bug of ours.
[[noreturn]] void unknown_enumerator(const char* type) {
  throw std::logic_error(message("internal check failed: not an enumerator of ", type));
}

}  // namespace

std::string_view name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
  }
  unknown_enumerator("DType");
}

DType dtype_from_name(std::string_view name) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    if (name == name_of(dtype)) return dtype;
  }
  throw ConfigError(message("[dtype] name is \"",
                            name,
                            "\"; allowed: \"float32\", \"float16\", \"bfloat16\"; "
                            "convert the weights to one of these"));
}

std::string_view name_of(SelectionStrategy strategy) {
  switch (strategy) {
    case SelectionStrategy::kPostQkt:
      return "post";
    case SelectionStrategy::kPreQkt:
      return "pre";
  }
  unknown_enumerator("SelectionStrategy");
}

std::string_view name_of(QueryMode mode) {
  switch (mode) {
    case QueryMode::kExact:
      return "exact";
    case QueryMode::kSpeculative:
      return "speculative";
    case QueryMode::kRescore:
      return "rescore";
  }
  unknown_enumerator("QueryMode");
}

}  // namespace hybridgen
