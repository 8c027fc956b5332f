// SPDX-License-Identifier: Apache-2.0
// How the CPU's operations are spread over threads must not show in their results. What they
// compute is the business of the kernels' tests and of the examples that both implementations
// share.
#include <ATen/Context.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <gtest/gtest.h>
#include <torch/library.h>

#include <exception>
#include <new>
#include <stdexcept>
#include <utility>
#include <vector>

#include "device/device_ops.h"
#include "runtime/worker_pool.h"

namespace hybridgen {
namespace {

// What LibTorch's matrix products throw where a Refusal is alive.
thread_local std::exception_ptr thrown;

at::Tensor& refuse_mm(const at::Tensor& /*x*/, const at::Tensor& /*weight*/, at::Tensor& /*y*/) {
  std::rethrow_exception(thrown);
}

at::Tensor& refuse_addmm(const at::Tensor& /*bias*/,
                         const at::Tensor& /*x*/,
                         const at::Tensor& /*weight*/,
                         const at::Scalar& /*beta*/,
                         const at::Scalar& /*alpha*/,
                         at::Tensor& /*y*/) {
  std::rethrow_exception(thrown);
}

TORCH_LIBRARY_IMPL(aten, TESTING_ONLY_GenericMode, library) {
  library.impl("mm.out", refuse_mm);
  library.impl("addmm.out", refuse_addmm);
}

TORCH_LIBRARY_IMPL(_, TESTING_ONLY_GenericMode, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

/// Makes LibTorch refuse this thread's matrix products.
class Refusal {
 public:
  explicit Refusal(std::exception_ptr error) { thrown = std::move(error); }

 private:
  c10::impl::IncludeDispatchKeyGuard guard_{c10::DispatchKey::TESTING_ONLY_GenericMode};
};

std::exception_ptr of_torch(const char* text) {
  return std::make_exception_ptr(c10::Error({__func__, __FILE__, 1}, text));
}

class CpuOpsOnAPool : public testing::TestWithParam<int> {
 protected:
  CpuOpsOnAPool() { at::manual_seed(7); }

  WorkerPool pool_{{.cpus = std::vector<int>(static_cast<std::size_t>(GetParam()), -1)}};
  std::unique_ptr<DeviceOps> spread_ = make_cpu_ops("auto", &pool_);
  std::unique_ptr<DeviceOps> alone_ = make_cpu_ops("auto");
  std::unique_ptr<DeviceOps> prompt_ = make_cpu_ops("auto", &pool_, RowsOf::kPrompt);
  std::unique_ptr<DeviceOps> prompt_alone_ = make_cpu_ops("auto", nullptr, RowsOf::kPrompt);
  std::unique_ptr<DeviceOps> portable_ = make_cpu_ops("portable", &pool_);
  std::unique_ptr<DeviceOps> portable_alone_ = make_cpu_ops("portable");
};

INSTANTIATE_TEST_SUITE_P(Workers, CpuOpsOnAPool, testing::Values(1, 3));

TEST_P(CpuOpsOnAPool, LinearLayersAreTheSameBitByBit) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const std::int64_t rows : {1, 2, 15, 16, 64}) {
      // Pieces that divide the outputs and pieces that do not; one piece alone.
      for (const std::int64_t outputs : {8, 1000, 1536}) {
        const at::Tensor x = at::randn({rows, 576}, type);
        const at::Tensor weight = at::randn({outputs, 576}, type);
        const at::Tensor bias = at::randn({outputs}, type);
        at::Tensor expected = at::empty({rows, outputs}, type);
        at::Tensor y = at::full({rows, outputs}, 7.0, type);
        alone_->linear(x, LinearWeight(weight), bias, expected);
        spread_->linear(x, LinearWeight(weight), bias, y);
        EXPECT_TRUE(at::equal(y, expected)) << rows << " rows, " << outputs << " outputs";
        prompt_alone_->linear(x, LinearWeight(weight), bias, expected);
        prompt_->linear(x, LinearWeight(weight), bias, y);
        EXPECT_TRUE(at::equal(y, expected)) << rows << " rows of a prompt, " << outputs;
      }
    }
  }
}

// LibTorch's product is the portable level's, whatever the processor.
TEST_P(CpuOpsOnAPool, MatrixProductsThatALibraryRefusesAreOurs) {
  const at::Tensor x = at::randn({80, 96}, at::kBFloat16);
  const at::Tensor weight = at::randn({40, 96}, at::kBFloat16);
  const at::Tensor bias = at::randn({40}, at::kBFloat16);
  for (const at::Tensor& added : {bias, at::Tensor()}) {
    at::Tensor expected = at::empty({80, 40}, at::kBFloat16);
    portable_alone_->linear(x, LinearWeight(weight), added, expected);
    for (const std::exception_ptr& refusal :
         {std::make_exception_ptr(std::bad_alloc()),
          std::make_exception_ptr(std::runtime_error("could not execute a primitive")),
          of_torch("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")}) {
      at::Tensor y = at::full({80, 40}, 7.0, at::kBFloat16);
      const Refusal refused(refusal);
      ASSERT_ANY_THROW(at::_ops::mm_out::call(x, weight.t(), y));
      portable_->linear(x, LinearWeight(weight), added, y);
      EXPECT_TRUE(y.to(at::kFloat).allclose(expected.to(at::kFloat), 2e-2, 2e-1));
    }
  }
}

TEST_P(CpuOpsOnAPool, WhateverElseALibraryThrowsIsThrownOn) {
  const at::Tensor x = at::randn({80, 96}, at::kBFloat16);
  const at::Tensor weight = at::randn({40, 96}, at::kBFloat16);
  const at::Tensor bias = at::randn({40}, at::kBFloat16);
  at::Tensor y = at::empty({80, 40}, at::kBFloat16);
  EXPECT_THROW(portable_->linear(x, LinearWeight(weight.narrow(1, 0, 95)), {}, y), c10::Error);
  EXPECT_THROW(portable_->linear(x, LinearWeight(weight), bias.narrow(0, 0, 39), y), c10::Error);
  const Refusal refused(std::make_exception_ptr(std::domain_error("a fault of its own")));
  EXPECT_THROW(portable_->linear(x, LinearWeight(weight), {}, y), std::domain_error);
  EXPECT_THROW(portable_->linear(x, LinearWeight(weight), bias, y), std::domain_error);
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

TEST_P(CpuOpsOnAPool, HeadsThatLieSideBySideAreNormedEachByItself) {
  ModelConfig config;
  config.norm_eps = 1e-3;
  const at::Tensor weight = at::randn({10});
  const std::unique_ptr<DeviceOps> aten = make_aten_ops();
  for (const std::int64_t rows : {1, 5, 700}) {
    // Three heads of ten, with others beside them.
    const at::Tensor wide = at::randn({rows, 70});
    const auto heads = [](const at::Tensor& all) {
      return all.narrow(1, 20, 30).unflatten(1, {3, 10});
    };
    at::Tensor expected = wide.clone();
    for (std::int64_t head = 0; head < 3; ++head) {
      at::Tensor one = expected.narrow(1, 20 + 10 * head, 10);
      alone_->norm(config, one, weight, {}, one);
    }
    for (const DeviceOps* ops : {alone_.get(), spread_.get(), prompt_.get()}) {
      at::Tensor normed = wide.clone();
      at::Tensor view = heads(normed);
      ops->norm(config, view, weight, {}, view);
      EXPECT_TRUE(at::equal(normed, expected)) << rows;
    }
    at::Tensor normed = wide.clone();
    at::Tensor view = heads(normed);
    aten->norm(config, view, weight, {}, view);
    EXPECT_TRUE(at::allclose(normed, expected, 1e-5, 1e-6)) << rows;
  }
}

TEST_P(CpuOpsOnAPool, AttentionOverResidentTokensIsTheSameBitByBit) {
  constexpr std::int64_t kTokens = 700;
  const at::Tensor query = at::randn({1, 6, 64});
  const at::Tensor keys = at::randn({3, kTokens, 64});
  const at::Tensor values = at::randn({3, kTokens, 64});
  const auto attend = [&](const DeviceOps& ops) {
    at::Tensor logits = at::empty({6, kTokens});
    at::Tensor merged = at::empty({6, kTokens});
    at::Tensor parts = at::empty({attention_scratch(6, 64, kTokens, 0)});
    at::Tensor out = at::empty({1, 6, 64});
    const std::vector<AttentionItem> items{{.keys = &keys,
                                            .values = &values,
                                            .num_resident = kTokens,
                                            .resident_logits = &logits,
                                            .merged_logits = &merged,
                                            .parts = &parts}};
    ops.resident_logits(query, {.items = items});
    ops.merge(query, {.items = items}, out);
    return out;
  };
  EXPECT_TRUE(at::equal(attend(*spread_), attend(*alone_)));
}

}  // namespace
}  // namespace hybridgen
