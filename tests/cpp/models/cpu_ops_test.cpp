// SPDX-License-Identifier: Apache-2.0
// How the CPU's operations are spread over threads must not show in their results. What they
// compute is the business of the kernels' tests and of the examples that both implementations
// share.
#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <vector>

#include "hybridgen/device/worker_pool.h"
#include "hybridgen/models/device_ops.h"

namespace hybridgen {
namespace {

class CpuOpsOnAPool : public testing::TestWithParam<int> {
 protected:
  CpuOpsOnAPool() { at::manual_seed(7); }

  WorkerPool pool_{{.cpus = std::vector<int>(static_cast<std::size_t>(GetParam()), -1)}};
  std::unique_ptr<DeviceOps> spread_ = make_cpu_ops("auto", &pool_);
  std::unique_ptr<DeviceOps> alone_ = make_cpu_ops("auto");
};

INSTANTIATE_TEST_SUITE_P(Workers, CpuOpsOnAPool, testing::Values(1, 3));

TEST_P(CpuOpsOnAPool, LinearLayersAreTheSameBitByBit) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const std::int64_t rows : {1, 2, 16}) {
      // Pieces that divide the outputs and pieces that do not; one piece alone.
      for (const std::int64_t outputs : {8, 1000, 1536}) {
        const at::Tensor x = at::randn({rows, 576}, type);
        const at::Tensor weight = at::randn({outputs, 576}, type);
        const at::Tensor bias = at::randn({outputs}, type);
        at::Tensor expected = at::empty({rows, outputs}, type);
        at::Tensor y = at::full({rows, outputs}, 7.0, type);
        alone_->linear(x, weight, bias, expected);
        spread_->linear(x, weight, bias, y);
        EXPECT_TRUE(at::equal(y, expected)) << rows << " rows, " << outputs << " outputs";
      }
    }
  }
}

TEST_P(CpuOpsOnAPool, MatrixProductsThatALibraryRefusesAreOurs) {
  const at::Tensor x = at::randn({80, 96}, at::kBFloat16);
  const at::Tensor weight = at::randn({40, 96}, at::kBFloat16);
  const at::Tensor bias = at::randn({40}, at::kBFloat16);
  for (const at::Tensor& added : {bias, at::Tensor()}) {
    at::Tensor expected = at::empty({80, 40}, at::kBFloat16);
    alone_->linear(x, weight, added, expected);
    // LibTorch computes into no tensor that wants a gradient, as it does into none without memory.
    at::Tensor y = at::full({80, 40}, 7.0, at::kBFloat16).set_requires_grad(true);
    ASSERT_THROW(at::_ops::mm_out::call(x, weight.t(), y), std::exception);
    spread_->linear(x, weight, added, y);
    EXPECT_TRUE(y.to(at::kFloat).allclose(expected.to(at::kFloat), 2e-2, 2e-1));
  }
}

TEST_P(CpuOpsOnAPool, ElementwiseOperationsAreTheSameBitByBit) {
  // Wide enough that they are cut into several pieces.
  const at::Tensor gate = at::randn({4, 60000});
  const at::Tensor up = at::randn({4, 60000});
  at::Tensor expected = at::empty_like(gate);
  at::Tensor y = at::empty_like(gate);
  alone_->silu_gate(gate, up, expected);
  spread_->silu_gate(gate, up, y);
  EXPECT_TRUE(at::equal(y, expected));
  alone_->add(expected, up);
  spread_->add(y, up);
  EXPECT_TRUE(at::equal(y, expected));
  alone_->relu(expected);
  spread_->relu(y);
  EXPECT_TRUE(at::equal(y, expected));
}

TEST_P(CpuOpsOnAPool, AttentionOverResidentTokensIsTheSameBitByBit) {
  constexpr std::int64_t kTokens = 700;
  const at::Tensor query = at::randn({1, 6, 64});
  const at::Tensor keys = at::randn({3, kTokens, 64});
  const at::Tensor values = at::randn({3, kTokens, 64});
  const auto attend = [&](const DeviceOps& ops) {
    at::Tensor logits = at::empty({6, kTokens});
    at::Tensor merged = at::empty({6, kTokens});
    at::Tensor out = at::empty({1, 6, 64});
    const std::vector<AttentionItem> items{{.keys = &keys,
                                            .values = &values,
                                            .num_resident = kTokens,
                                            .resident_logits = &logits,
                                            .merged_logits = &merged}};
    ops.resident_logits(query, items);
    ops.merge(query, items, out);
    return out;
  };
  EXPECT_TRUE(at::equal(attend(*spread_), attend(*alone_)));
}

}  // namespace
}  // namespace hybridgen
