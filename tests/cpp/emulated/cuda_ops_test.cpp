// SPDX-License-Identifier: Apache-2.0
// Every operation by our CUDA kernels, which the emulator runs on an emulated device, beside the
// CPU's. Attention is in methods_on_device_test.cpp and kernels/attention_cuda_test.cpp.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/sort.h>
#include <gtest/gtest.h>

#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "device/device_ops.h"
#include "device/flat_rows.h"
#include "device/linear_form.h"
#include "device/planning.h"
#include "kernels/coded_rows.h"
#include "support/emulated_cuda.h"
#include "support/kernels_on_device.h"
#include "support/tiny_model.h"

#if !HYBRIDGEN_TORCH_HAS_CUDA

namespace hybridgen {
namespace {

using emulated::Mode;
using testing::EmulatedCuda;
using testing::KernelsOnDevice;

class CudaOperations : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  at::Tensor random(at::IntArrayRef sizes) const { return at::randn(sizes).to(GetParam()); }
  at::Tensor there(const at::Tensor& tensor) const {
    return tensor.defined() ? tensor.to(at::Device(device_.name())) : tensor;
  }
  LinearWeight there(LinearWeight weight) const {
    for (at::Tensor* tensor : weight.tensors()) {
      *tensor = there(*tensor);
    }
    return weight;
  }
  /// Two roundings of the largest number, or sums of `terms` products in another order.
  void expect_near(const at::Tensor& actual, const at::Tensor& expected, double terms = 1.0) const {
    const double rounding = GetParam() == at::kFloat ? 1e-6 : GetParam() == at::kHalf ? 1e-3 : 8e-3;
    const at::Tensor wide = expected.to(at::kFloat);
    const double largest = wide.abs().max().item<float>();
    EXPECT_LE((actual.cpu().to(at::kFloat) - wide).abs().max().item<float>(),
              2.0 * rounding * largest + terms * 1e-6 * largest);
  }

  EmulatedCuda device_{Mode::kLazy};
  KernelsOnDevice kernels_{device_.device()};
  std::unique_ptr<DeviceOps> cuda_ = make_cuda_ops(at::Device(device_.name()));
  std::unique_ptr<DeviceOps> cpu_ = make_cpu_ops("portable");
};

TEST_P(CudaOperations, MultiplyMatricesWithAndWithoutABias) {
  const at::Tensor x = random({3, 40});
  const LinearWeight weight(random({24, 40}));
  for (const at::Tensor& bias : {at::Tensor(), random({24})}) {
    for (const at::ScalarType type : {GetParam(), at::kFloat}) {
      at::Tensor y = at::empty({3, 24}, type);
      at::Tensor expected = at::empty({3, 24}, type);
      at::Tensor device_y = there(y);
      cuda_->linear(there(x), there(weight), there(bias), device_y);
      cpu_->linear(x, weight, bias, expected);
      expect_near(device_y, expected, 40);
    }
  }
}

TEST_P(CudaOperations, MultiplyFewAndManyRowsByCodes) {
  for (const int bits : {8, 4}) {
    LinearWeight weight;
    weight.bits = bits;
    weight.group = 32;
    weight.inputs = 64;
    weight.codes = at::randint(0, 256, {24, kernels::coded_row_bytes(bits, 64)}).to(at::kByte);
    weight.scales = at::randn({24, 2});
    for (const std::int64_t rows : {std::int64_t{3}, kMostStepRows + 1}) {
      const at::Tensor x = random({rows, 64});
      at::Tensor expected = at::empty({rows, 24}, GetParam());
      at::Tensor y = there(expected);
      cuda_->linear(there(x), there(weight), {}, y);
      // Of the same numbers; those of the CPU's codes are rounded to eight bits first.
      make_aten_ops()->linear(x, weight, {}, expected);
      expect_near(y, expected, 64);
    }
  }
}

TEST_P(CudaOperations, SelectRows) {
  const LinearWeight table(random({10, 33}));
  const at::Tensor ids = at::randint(0, 8, {4}, at::kLong);
  at::Tensor expected = at::empty({4, 33}, GetParam());
  at::Tensor y = there(expected);
  cuda_->select_rows(there(table), there(ids), 2, y);
  cpu_->select_rows(table, ids, 2, expected);
  EXPECT_TRUE(y.cpu().equal(expected));
}

TEST_P(CudaOperations, NormASumOnceForTwoLayers) {
  for (const NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
    ModelConfig config = testing::tiny_config();
    config.norm = kind;
    const at::Tensor bias = kind == NormKind::kLayer ? random({48}) : at::Tensor();
    const at::Tensor weight = random({48});
    const at::Tensor other = random({48});
    const at::Tensor addend = random({3, 48});
    at::Tensor x = random({3, 48});
    at::Tensor y = at::empty_like(x);
    at::Tensor second = at::empty_like(x);
    at::Tensor device_x = there(x);
    at::Tensor device_y = there(y);
    at::Tensor device_second = there(second);
    const at::Tensor device_weight = there(weight);
    const at::Tensor device_other = there(other);
    const at::Tensor device_bias = there(bias);
    const NormTarget on_device{device_other, device_bias, device_second};
    cuda_->norms(
        config, device_x, there(addend), {device_weight, device_bias, device_y}, &on_device);
    const NormTarget on_cpu{other, bias, second};
    cpu_->norms(config, x, addend, {weight, bias, y}, &on_cpu);
    expect_near(device_x, x);
    expect_near(device_y, y, 48);
    expect_near(device_second, second, 48);
  }
}

TEST_P(CudaOperations, TurnAndGate) {
  const ModelConfig config = testing::tiny_config();
  const RopeTable table = build_rope_table(config, 16, at::kCPU);
  const RopeTable device_table{there(table.cosines), there(table.sines)};
  const at::Tensor rows = at::arange(3, at::kLong) + 5;
  at::Tensor x = random({3, 2, config.head_dim});
  at::Tensor device_x = there(x);
  cuda_->rotate(device_table, there(rows), device_x);
  cpu_->rotate(table, rows, x);
  expect_near(device_x, x);

  const at::Tensor gate = random({3, 40});
  const at::Tensor up = random({3, 40});
  at::Tensor y = at::empty_like(up);
  at::Tensor device_y = there(y);
  cuda_->silu_gate(there(gate), there(up), device_y);
  cpu_->silu_gate(gate, up, y);
  expect_near(device_y, y);
  cuda_->relu(device_y);
  cpu_->relu(y);
  cuda_->add(device_y, there(gate));
  cpu_->add(y, gate);
  expect_near(device_y, y);
}

/// What an item's guesses make its places.
at::Tensor best_places(const PlanItem& item) {
  const at::Tensor guesses = item.guesses.cpu();
  const std::int64_t count =
      item.alpha ? count_near(guesses, *item.alpha, item.most).item<std::int64_t>() : item.most;
  const at::Tensor places =
      at::full({guesses.size(0), item.most}, item.num_tokens, at::TensorOptions(at::kInt));
  const at::Tensor best = std::get<1>(at::sort(guesses, /*stable=*/true, -1, /*descending=*/true));
  places.narrow(1, 0, count).copy_(std::get<0>(at::sort(best.narrow(1, 0, count), -1)));
  return places;
}

// Two rows of three plan in the second of two layers, by keys of their own.
TEST_P(CudaOperations, GuessAndRankForAllRowsAtATime) {
  constexpr std::int64_t kGroups = 2;
  const at::Tensor query = random({3, 6, 8});
  const at::Tensor columns = at::randn({2, kGroups, 8, 5});
  const at::Tensor device_columns = there(columns);
  for (const std::optional<double> alpha : {std::optional<double>(), {0.0}, {0.5}, {4.0}}) {
    const std::vector<at::Tensor> keys{random({2, kGroups, 4, 5, 32}),
                                       random({2, kGroups, 2, 5, 32})};
    const std::vector<at::Tensor> device_keys{there(keys[0]), there(keys[1])};
    std::vector<PlanItem> items;
    std::vector<PlanItem> device_items;
    std::vector<kernels::PlanRow> rows(3);
    const at::Tensor counts = there(at::empty({3}, at::kLong));
    const at::Tensor work = there(at::empty({2, 1 << 16}, at::kByte));
    for (std::size_t i = 0; i < 2; ++i) {
      const std::int64_t tokens = i == 0 ? 100 : 37;
      PlanItem item{.row = 2 * static_cast<std::int64_t>(i),
                    .columns = &columns,
                    .keys = &keys[i],
                    .num_tokens = tokens,
                    .most = tokens / 2,
                    .alpha = i == 0 ? alpha : std::nullopt,
                    .guesses = at::empty({kGroups, tokens}),
                    .places = at::empty({kGroups, tokens / 2}, at::kInt)};
      items.push_back(item);
      item.columns = &device_columns;
      item.keys = &device_keys[i];
      item.guesses = there(item.guesses);
      item.places = there(item.places);
      device_items.push_back(item);
      kernels::PlanRow& row = rows[2 * i] = flat_row(item);
      row.work = work.select(0, static_cast<std::int64_t>(i)).mutable_data_ptr();
      if (item.alpha) {
        row.count = counts.mutable_data_ptr<std::int64_t>() + item.row;
      }
    }
    const at::Tensor flat =
        at::empty({std::ssize(rows) * std::int64_t{sizeof(rows[0])}}, at::kByte);
    std::memcpy(flat.mutable_data_ptr(), rows.data(), rows.size() * sizeof(rows[0]));
    const at::Tensor device_flat = there(flat);
    cuda_->plan(there(query),
                {.items = device_items,
                 .layer = 1,
                 .rows = static_cast<const kernels::PlanRow*>(device_flat.const_data_ptr())});
    cpu_->plan(query, {.items = items, .layer = 1});
    for (std::size_t i = 0; i < items.size(); ++i) {
      expect_near(device_items[i].guesses, items[i].guesses, 5);
      EXPECT_TRUE(device_items[i].places.cpu().equal(best_places(device_items[i])));
      EXPECT_TRUE(items[i].places.equal(best_places(items[i])));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         CudaOperations,
                         ::testing::Values(at::kFloat, at::kHalf, at::kBFloat16),
                         [](const auto& type) { return std::string(c10::toString(type.param)); });

}  // namespace
}  // namespace hybridgen

#endif  // !HYBRIDGEN_TORCH_HAS_CUDA
