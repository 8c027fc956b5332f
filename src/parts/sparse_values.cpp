// SPDX-License-Identifier: Apache-2.0
// FlexGen's sparse attention (Sheng et al., ICML 2023; FMInference/FlexLLMGen, `attn-sparsity`):
// the softmax runs over all tokens, but only values of the tokens with the largest weights are
// fetched, and the weights are not renormalised. The fetch waits for the weights, so nothing hides
// it.
#include "hybridgen/parts/part_roles.h"
#include "parts/parts.h"

namespace hybridgen {
namespace {

class SparseValues final : public KeptValues {
 public:
  explicit SparseValues(double share) : share_(share) {}

  PartState state() const override { return {}; }

  // All tokens but the new one count.
  std::int64_t num_kept(std::int64_t num_tokens) const override {
    return static_cast<std::int64_t>(share_ * static_cast<double>(num_tokens - 1));
  }

 private:
  double share_;
};

}  // namespace

PartFactory sparse_values_part(double share) {
  return {.role = PartRole::kKeptValues,
          .make = [share](const PartContext&) { return std::make_unique<SparseValues>(share); }};
}

}  // namespace hybridgen
