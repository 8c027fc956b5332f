// SPDX-License-Identifier: Apache-2.0
// Our CUDA kernels among LibTorch's operations on the streams of an emulated device: queued where
// they are launched, in order, whenever the device runs them.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/isnan.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <gtest/gtest.h>

#include <array>
#include <string>

#include "kernels/cuda_kernels.h"
#include "kernels/cuda_launch.h"
#include "support/cuda_emulator/error.h"
#include "support/emulated_cuda.h"
#include "support/kernels_on_device.h"

namespace hybridgen {
namespace {

using emulated::Mode;
using testing::EmulatedCuda;
using testing::KernelsOnDevice;

constexpr std::int64_t kQueries = 3;
constexpr std::int64_t kHost = 40;
constexpr std::int64_t kResident = 300;
constexpr std::int64_t kHeadDim = 64;

c10::Stream pool_stream(at::Device device) {
  const c10::impl::VirtualGuardImpl guard(device.type());
  return guard.getStreamFromGlobalPool(device, /*isHighPriority=*/false);
}

/// Inputs of both kernels as tensors of the host, and what LibTorch makes of them there.
struct Inputs {
  at::Tensor host_logits = at::randn({kQueries, kHost});
  at::Tensor resident_logits = at::randn({kQueries, kResident});
  at::Tensor host_values = at::randn({kHost, kHeadDim});
  at::Tensor resident_values = at::randn({kResident, kHeadDim});

  at::Tensor expected() const {
    const at::Tensor weights = at::softmax(at::cat({host_logits, resident_logits}, 1), 1);
    return at::matmul(weights, at::cat({host_values, resident_values}, 0));
  }
};

/// The output of both kernels, queued on the current stream of `device`, which is `stream`.
at::Tensor queue_merge(const Inputs& inputs, at::Device device, c10::Stream stream) {
  const auto upload = [&](const at::Tensor& tensor) { return tensor.to(device); };
  const at::Tensor host_logits = upload(inputs.host_logits);
  const at::Tensor resident_logits = upload(inputs.resident_logits);
  const at::Tensor host_values = upload(inputs.host_values);
  const at::Tensor resident_values = upload(inputs.resident_values);
  const auto floats = at::TensorOptions().device(device).dtype(at::kFloat);
  const at::Tensor logits = at::empty({kQueries, kHost + kResident}, floats);
  at::Tensor out = at::empty({kQueries, kHeadDim}, floats);
  kernels::MergeSegment segment{
      .host_logits = static_cast<const float*>(host_logits.const_data_ptr()),
      .host_count = kHost,
      .resident_logits = static_cast<const float*>(resident_logits.const_data_ptr()),
      .resident_count = kResident,
      .logits = static_cast<float*>(logits.data_ptr()),
      .host_values = host_values.const_data_ptr(),
      .resident_values = resident_values.const_data_ptr(),
      .resident_stride = kHeadDim,
      .out = out.data_ptr()};
  const at::Tensor segments =
      at::from_blob(&segment, {static_cast<std::int64_t>(sizeof(segment))}, at::kByte).to(device);
  const auto* on_device = static_cast<const kernels::MergeSegment*>(segments.const_data_ptr());
  const cudaStream_t handle = KernelsOnDevice::stream_handle(stream);
  kernels::concat_logits_cuda(on_device, 1, kQueries, kHost + kResident, handle);
  kernels::softmax_values_cuda(
      on_device, 1, kQueries, kHeadDim, DType::kFloat32, kHost + kResident, handle);
  return out;  // the other tensors' memory is this stream's to use again
}

void expect_near(const at::Tensor& actual, const at::Tensor& expected) {
  // Sums of 340 terms, weights of which sum to 1, in different orders.
  EXPECT_LT((actual - expected).abs().max().item<float>(), 1e-5F);
}

class MergeKernels : public ::testing::TestWithParam<Mode> {};

TEST_P(MergeKernels, AreInOrderWithOperationsOfTheirStream) {
  const Inputs inputs;
  EmulatedCuda device(GetParam());
  const KernelsOnDevice kernels(device.device());
  const at::Device where(device.name());
  const c10::Stream stream = pool_stream(where);
  const c10::StreamGuard guard(stream);
  device.reset_counters();
  const at::Tensor out = queue_merge(inputs, where, stream);
  EXPECT_EQ(device.counters().launches, 2);
  const at::Tensor doubled = out * 2.0;  // after the kernels, on the same stream
  expect_near(doubled.cpu(), inputs.expected() * 2.0);
}

TEST_P(MergeKernels, AreBeforeOperationsOfAnotherStreamThatWaitsForThem) {
  const Inputs inputs;
  EmulatedCuda device(GetParam());
  const KernelsOnDevice kernels(device.device());
  const at::Device where(device.name());
  const c10::Stream first = pool_stream(where);
  const c10::Stream second = pool_stream(where);
  ASSERT_NE(first, second);
  c10::Event event(where.type());
  at::Tensor out;
  {
    const c10::StreamGuard guard(first);
    out = queue_merge(inputs, where, first);
    event.record(first);
  }
  event.block(second);
  const c10::StreamGuard guard(second);
  expect_near((out * 2.0).cpu(), inputs.expected() * 2.0);
}

TEST_P(MergeKernels, AFaultyKernelFailsTheNextWaitForTheDevice) {
  EmulatedCuda device(GetParam());
  const KernelsOnDevice kernels(device.device());
  void (*waits_for_ever)(int) = [](int) {
    if (threadIdx.x == 0) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  };
  kernels::launch(waits_for_ever, 1, 32, 0, nullptr, 0);
  EXPECT_THROW(device.device().host_wait_for_all(), cuda_emulator::KernelError);
}

// What a missing wait does: the other stream's operation runs when it is waited for, and the
// kernels have not.
TEST(MergeKernelsFault, WithoutTheWaitALazyDeviceReadsWhatNobodyWrote) {
  const Inputs inputs;
  EmulatedCuda device(Mode::kLazy);
  const KernelsOnDevice kernels(device.device());
  const at::Device where(device.name());
  const c10::Stream first = pool_stream(where);
  const c10::Stream second = pool_stream(where);
  at::Tensor out;
  {
    const c10::StreamGuard guard(first);
    out = queue_merge(inputs, where, first);
  }
  const c10::StreamGuard guard(second);
  EXPECT_TRUE(at::isnan((out * 2.0).cpu()).all().item<bool>());
}

std::string mode_name(const ::testing::TestParamInfo<Mode>& info) {
  constexpr std::array kNames = {"eager", "threads", "delays", "lazy"};
  return kNames.at(static_cast<std::size_t>(info.param));
}

INSTANTIATE_TEST_SUITE_P(
    Modes,
    MergeKernels,
    ::testing::Values(Mode::kEager, Mode::kThreads, Mode::kDelays, Mode::kLazy),
    mode_name);

}  // namespace
}  // namespace hybridgen
