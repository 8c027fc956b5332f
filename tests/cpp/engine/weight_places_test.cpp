// SPDX-License-Identifier: Apache-2.0
// Weights that are not on the device: wherever they lie and however they come, everybody gets what
// resident weights give, bit by bit; and what a disk refuses ends the requests that need it.
#include "models/weight_places.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <memory>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "hybridgen/core/error.h"
#include "memory/process_memory.h"
#include "models/weight_homes.h"
#include "support/emulated_cuda.h"
#include "support/method_settings.h"
#include "support/placed_model.h"
#include "support/run_to_end.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::drawn;
using testing::Ended;
using testing::folder;
using testing::Generated;
using testing::message_of;
using testing::run_to_end;

// ------------------------------------------------------------------------------------- the rule

std::string places_of(const std::vector<std::int64_t>& sizes, PlaceShares shares) {
  std::string text;
  for (const WeightPlace place : places_by_middle(sizes, shares)) {
    text += place == WeightPlace::kDevice ? 'G' : place == WeightPlace::kHost ? 'C' : 'D';
  }
  return text;
}

// docs of FlexGen's real shares: which matrix is the next to be on the GPU at which percentage.
TEST(PlacesByMiddle, AreFlexGensSteps) {
  const std::vector<std::int64_t> attention(4, 100);  // q, k, v, output
  const std::vector<std::int64_t> ffn(2, 400);
  const auto gpu = [](double share) { return PlaceShares{.device = share, .host = 1.0 - share}; };
  EXPECT_EQ(places_of(attention, gpu(0.12)), "CCCC");
  EXPECT_EQ(places_of(attention, gpu(0.13)), "CCCG");
  EXPECT_EQ(places_of(attention, gpu(0.38)), "CCGG");
  EXPECT_EQ(places_of(attention, gpu(0.63)), "CGGG");
  EXPECT_EQ(places_of(attention, gpu(0.88)), "GGGG");
  EXPECT_EQ(places_of(ffn, gpu(0.24)), "CC");
  EXPECT_EQ(places_of(ffn, gpu(0.26)), "CG");
  EXPECT_EQ(places_of(ffn, gpu(0.76)), "GG");
  EXPECT_EQ(places_of(attention, {.device = 0.5, .host = 0.1}), "DDGG");
  EXPECT_EQ(places_of(attention, {.device = 0.25, .host = 0.5}), "DCCG");
  EXPECT_EQ(places_of(attention, {.device = 0.0, .host = 0.0}), "DDDD");
}

TEST(PlaceLayer, HasAllOfItOnTheDeviceUnlessSomethingIsToLieElsewhere) {
  ModelConfig config = testing::tiny_config();
  for (const Activation activation : {Activation::kSiluGate, Activation::kRelu}) {
    config.activation = activation;
    EXPECT_TRUE(place_layer(config, {}, false).all_on_device());
    EXPECT_TRUE(place_layer(config, {.device = 0.2, .host = 0.8}, true).all_on_device());
    EXPECT_FALSE(place_layer(config, {.device = 0.2, .host = 0.8}, false).all_on_device());
  }
}

TEST(ShareWithin, IsTheMostThatFits) {
  const ModelConfig config = testing::tiny_config();
  const auto sizes = matrix_sizes(config);
  const auto on_device = [&](double share) {
    const LayerPlaces places = place_layer(config, {.device = share, .host = 0.0}, false);
    std::int64_t bytes = 0;
    for (std::size_t i = 0; i < kLayerMatrices; ++i) {
      if (places.places[i] == WeightPlace::kDevice) bytes += 4 * sizes[i] * config.num_layers;
    }
    return bytes;
  };
  const std::int64_t all = 4 * std::accumulate(sizes.begin(), sizes.end(), std::int64_t{}) * 4;
  EXPECT_EQ(share_within(config, 4.0, all), 1.0);
  for (std::int64_t bytes = 0; bytes < all; bytes += all / 50) {
    const double share = share_within(config, 4.0, bytes);
    EXPECT_LE(on_device(share), bytes);
    EXPECT_GT(on_device(share + 1e-6), bytes) << "more would have fitted";
  }
  EXPECT_DOUBLE_EQ(share_within(config, 4.0, all, 0.25), 0.75);
}

// --------------------------------------------------------------------------------------- streams

std::vector<EngineOptions> settings() {
  EngineOptions full = testing::options("full");
  EngineOptions guessing =
      testing::hybrid("", QueryMode::kSpeculative, testing::kPost, "topk", TokenCount::count(7))
          .options;
  EngineOptions in_batches = guessing;
  in_batches.micro_batch = 2;  // layers overlap, and each is guessed for
  EngineOptions chunks = full;
  chunks.prefill_chunk = 16;
  return {full, guessing, in_batches, chunks};
}

std::shared_ptr<DecoderModel> model_at(PlaceShares shares,
                                       std::optional<bool> reads_direct = {},
                                       const ModelConfig& config = testing::tiny_config()) {
  return testing::placed_model("cpu", shares, reads_direct, config);
}

std::vector<Generated> run(const std::shared_ptr<DecoderModel>& model,
                           const EngineOptions& options) {
  Engine engine(model, options);
  return testing::generate(engine, testing::ragged_prompts(), 6);
}

TEST(StreamedWeights, GiveTheBitsOfResidentOnesWhateverTheSplit) {
  const auto resident = model_at({});
  for (const EngineOptions& options : settings()) {
    const auto expected = run(resident, options);
    for (const double memory : {0.0, 0.2, 0.3, 0.45, 0.6, 0.8}) {
      for (const bool direct : {false, true}) {
        const auto model = model_at({.device = memory, .host = 0.0}, direct);
        ASSERT_TRUE(model->weights().streamed().has_disk());
        EXPECT_EQ(run(model, options), expected) << memory << ' ' << direct;
      }
    }
  }
}

TEST(StreamedWeights, OfUngatedModelsWithBiasesDoToo) {
  ModelConfig config = testing::tiny_config();
  config.norm = NormKind::kLayer;
  config.activation = Activation::kRelu;
  config.position = PositionKind::kLearned;
  config.qkv_bias = config.output_bias = config.ffn_bias = true;
  const auto expected = run(model_at({}, {}, config), settings()[1]);
  EXPECT_EQ(run(model_at({.device = 0.4, .host = 0.0}, {}, config), settings()[1]), expected);
}

class StreamedWeightsBothWays : public ::testing::TestWithParam<bool> {};

INSTANTIATE_TEST_SUITE_P(PastThePageCacheOrInIt, StreamedWeightsBothWays, ::testing::Bool());

TEST_P(StreamedWeightsBothWays, AreCountedByPlaceAndAsTheyCome) {
  const bool direct = GetParam();
  const auto model = model_at({.device = 0.5, .host = 0.0}, direct);
  const Weights& weights = model->weights();
  EXPECT_EQ(weights.device_bytes() + weights.streamed().disk_bytes,
            model_at({})->weights().bytes());
  Engine engine(model, testing::options("full"));
  EXPECT_EQ(engine.run_statistics().weights.disk_bytes, weights.streamed().disk_bytes);
  // What is read in the page cache takes no memory of the engine's.
  EXPECT_EQ(engine.memory().front().used_bytes, direct ? 2 * weights.streamed().slot_bytes : 0);
  testing::generate(engine, {testing::prompt(30)}, 5);
  const WeightStatistics statistics = engine.run_statistics().weights;
  // One pass for the prompt and four steps, each of all four layers; those but the last may have
  // come for the next one.
  const std::int64_t pass = weights.streamed().disk_bytes;
  EXPECT_GE(statistics.read_bytes, 5 * pass);
  EXPECT_LE(statistics.read_bytes, 5 * pass + 3 * pass / 4);
  if (direct) {
    EXPECT_GT(statistics.read_s, 0.0);
  } else {
    EXPECT_EQ(statistics.read_s, 0.0) << "just written, it is in the page cache";
  }
  EXPECT_GE(statistics.hidden_share(), 0.0);
  EXPECT_EQ(statistics.copy_s, 0.0) << "nothing is copied to a CPU";
  engine.reset_statistics();
  EXPECT_EQ(engine.run_statistics().weights.read_bytes, 0);
}

TEST(StreamedWeights, ComeOnceForAllPromptsThatAreReadTogether) {
  const auto model = model_at({.device = 0.0, .host = 0.0});
  Engine engine(model, testing::options("full"));
  SamplingOptions sampling;
  sampling.max_tokens = 1;
  for (const auto& prompt : testing::ragged_prompts()) engine.add(prompt, sampling);
  Ended ended;
  testing::step(engine, ended);
  EXPECT_EQ(ended.generated.size(), testing::ragged_prompts().size());
  const std::int64_t pass = model->weights().streamed().disk_bytes;
  EXPECT_LE(engine.run_statistics().weights.read_bytes, pass + 3 * pass / 4) << "next pass's too";
}

/// A model whose weights on disk lie in a new file at `path`, behind so many bytes.
std::shared_ptr<DecoderModel> model_in_file(const std::string& path,
                                            WeightHomes homes,
                                            std::int64_t begin = 64) {
  auto model = std::make_shared<DecoderModel>(
      testing::tiny_config(), DType::kFloat32, "cpu", std::move(homes));
  Weights& weights = model->weights();
  std::ofstream file(path, std::ios::binary);
  file << std::string(static_cast<std::size_t>(begin), 'h');
  std::uint64_t seed = 1;
  std::vector<std::pair<std::string, std::int64_t>> in_file;
  for (const auto& [name, shape] : weights.expected_tensors()) {
    const at::Tensor tensor = drawn(name, shape, ++seed);
    if (!weights.is_on_disk(name)) {
      weights.load_tensor(name, tensor);
      continue;
    }
    in_file.emplace_back(name, file.tellp());
    file.write(static_cast<const char*>(tensor.const_data_ptr()),
               static_cast<std::streamsize>(tensor.nbytes()));
  }
  file.close();
  for (const auto& [name, offset] : in_file) weights.load_from_file(name, path, offset);
  EXPECT_THROW(weights.load_from_file(in_file[0].first, path, 0), CheckpointError) << "twice";
  return model;
}

TEST(StreamedWeights, AreReadOutOfAFileAsItIs) {
  const auto expected = run(model_at({}), settings()[1]);
  const std::string path = (folder().path() / "weights").string();
  for (const bool direct : {false, true}) {
    for (const std::int64_t begin : {64, 68, 17}) {  // 17: no multiple of a number's size
      const WeightHomes homes{.layers = place_layer(testing::tiny_config(), {0.3, 0.0}, true),
                              .folder = folder().string(),
                              .reads_direct = direct};
      EXPECT_EQ(run(model_in_file(path, homes, begin), settings()[1]), expected) << begin;
    }
  }
}

TEST(StreamedWeights, OfAFileAreRefusedWhereTheyLieInMemory) {
  DecoderModel resident(testing::tiny_config(), DType::kFloat32, "cpu");
  const std::string name = resident.weights().expected_tensors().front().first;
  ASSERT_FALSE(resident.weights().is_on_disk(name));
  EXPECT_THROW(resident.weights().load_from_file(name, "/dev/null", 0), CheckpointError);
}

TEST(StreamedWeights, OfOneModelServeTwoEnginesAtATime) {
  const auto expected = run(model_at({}), settings()[1]);
  const auto model = model_at({.device = 0.2, .host = 0.0});
  std::vector<std::vector<Generated>> found(2);
  std::vector<std::thread> threads;
  for (auto& own : found) {
    threads.emplace_back([&] { own = run(model, settings()[1]); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(found[0], expected);
  EXPECT_EQ(found[1], expected);
}

TEST_P(StreamedWeightsBothWays, EndWithTheDiskTheRequestsThatNeedThemAndNothingElse) {
  FaultyDisk disk;
  std::atomic<std::int64_t> healthy{1 << 20};
  disk.answer = [&](DiskCall call, int) -> std::optional<std::int64_t> {
    if (call == DiskCall::kFindCached) return -ENOMEM;  // what the page cache has is not known
    const bool is_read = call == DiskCall::kRead || call == DiskCall::kFetch;
    if (is_read && healthy.fetch_sub(1) <= 0) return -EIO;
    return {};
  };
  const DiskCallsForTest instead(disk);
  const auto model = model_at({.device = 0.0, .host = 0.0}, GetParam());
  const auto expected = run(model, settings()[1]);
  for (const std::int64_t reads : {0, 3, 40}) {
    Engine engine(model, settings()[1]);
    healthy = reads;
    SamplingOptions sampling;
    sampling.max_tokens = 6;
    for (const auto& prompt : testing::ragged_prompts()) engine.add(prompt, sampling);
    const Ended ended = run_to_end(engine);
    EXPECT_EQ(ended.errors.size(), testing::ragged_prompts().size());
    for (const auto& [id, error] : ended.errors) {
      const std::string text = message_of<DeviceError>(error);
      EXPECT_NE(text.find("[stream weights]"), std::string::npos) << text;
      EXPECT_NE(text.find(folder().string()), std::string::npos) << text;
    }
    healthy = 1 << 20;
    EXPECT_EQ(testing::generate(engine, testing::ragged_prompts(), 6), expected);
  }
}

// The system drops pages of a file that ends before them at once, whoever is about to read them.
TEST(StreamedWeights, ThatAreLostWhileTheyAreReadEndTheRequestsAndNothingElse) {
  const std::string path = (folder().path() / "lost").string();
  const auto model = model_in_file(
      path,
      {.layers = place_layer(testing::tiny_config(), {0.0, 0.0}, true), .reads_direct = false});
  const std::filesystem::path whole = folder().path() / "whole";
  std::filesystem::copy_file(path, whole);
  const auto expected = run(model_at({}), testing::options("full"));
  Engine engine(model, testing::options("full"));
  SamplingOptions sampling;
  sampling.max_tokens = 6;
  for (const auto& prompt : testing::ragged_prompts()) engine.add(prompt, sampling);
  Ended ended;
  testing::step(engine, ended);
  ASSERT_TRUE(ended.errors.empty());
  std::filesystem::resize_file(path, 64);
  ended = run_to_end(engine);
  EXPECT_EQ(ended.errors.size(), testing::ragged_prompts().size());
  for (const auto& [id, error] : ended.errors) {
    const std::string text = message_of<DeviceError>(error);
    EXPECT_NE(text.find(path), std::string::npos) << text;
  }
  std::ofstream(path, std::ios::binary | std::ios::in) << std::ifstream(whole).rdbuf();
  EXPECT_EQ(testing::generate(engine, testing::ragged_prompts(), 6), expected);
}

// ---------------------------------------------------------------------------------------- shared

WeightHomes shared_homes() {
  return {.layers = place_layer(testing::tiny_config(), {0.0, 0.0}, true),
          .reads_direct = false,
          .are_shared = true};
}

TEST(SharedWeights, GiveTheBitsOfThoseOfOnesOwn) {
  const std::string path = (folder().path() / "shared").string();
  const auto shared = model_in_file(path, shared_homes());
  for (const EngineOptions& options : settings()) {
    EXPECT_EQ(run(shared, options), run(model_at({}), options));
  }
}

TEST(SharedWeights, AreAllButNormsAndBiasesAndComeOnce) {
  const std::string path = (folder().path() / "shared").string();
  const auto model = model_in_file(path, shared_homes());
  const ModelConfig config = testing::tiny_config();
  const std::int64_t norms = (2 * config.num_layers + 1) * config.hidden_size;
  EXPECT_EQ(model->weights().streamed().disk_bytes, model->weights().bytes() - 4 * norms);
  EXPECT_EQ(model->weights().device_bytes(), model_at({})->weights().bytes());
  const std::int64_t held = ProcessMemory::instance().weights();
  Engine engine(model, testing::options("full"));
  EXPECT_EQ(ProcessMemory::instance().weights(), held);
  EXPECT_GE(held, model->weights().bytes()) << "they stay, so others may not have their memory";
  testing::generate(engine, testing::ragged_prompts(), 6);
  const WeightStatistics statistics = engine.run_statistics().weights;
  EXPECT_LE(statistics.read_bytes, model->weights().bytes());
  testing::generate(engine, testing::ragged_prompts(), 6);
  EXPECT_EQ(engine.run_statistics().weights.read_bytes, statistics.read_bytes);
}

// Tables are used before the first layer and after the last, and layers are held meanwhile.
TEST(SharedWeights, ThatWereLostAreAskedForAgain) {
  const std::string path = (folder().path() / "shared").string();
  for (const EngineOptions& options : settings()) {
    const auto model = model_in_file(path, shared_homes());
    const std::filesystem::path whole = folder().path() / "whole";
    std::filesystem::copy_file(path, whole, std::filesystem::copy_options::overwrite_existing);
    Engine engine(model, options);
    Engine idle(model, options);
    const auto expected = testing::generate(engine, testing::ragged_prompts(), 6);
    EXPECT_EQ(testing::generate(idle, testing::ragged_prompts(), 6), expected);
    std::filesystem::resize_file(path, 64);
    SamplingOptions sampling;
    sampling.max_tokens = 1;
    for (const auto& prompt : testing::ragged_prompts()) engine.add(prompt, sampling);
    EXPECT_EQ(run_to_end(engine).errors.size(), testing::ragged_prompts().size());
    std::ofstream(path, std::ios::binary | std::ios::in) << std::ifstream(whole).rdbuf();
    EXPECT_EQ(testing::generate(engine, testing::ragged_prompts(), 6), expected);
    EXPECT_EQ(testing::generate(idle, testing::ragged_prompts(), 6), expected)
        << "who lost nothing goes on";
  }
}

TEST(SharedWeights, HaveToLieInFilesAsTheyAreUsed) {
  DecoderModel model(testing::tiny_config(), DType::kFloat32, "cpu", shared_homes());
  EXPECT_THROW(model.weights().load_dummy(1), CheckpointError);
  EXPECT_THROW(model_in_file((folder().path() / "odd").string(), shared_homes(), 17),
               CheckpointError);
}

TEST(SharedWeights, AreForTheCpuAndGoWithNoOtherPlace) {
  const ModelConfig config = testing::tiny_config();
  const auto homes_on = [&](const std::string& device, const WeightOptions& made) {
    return weight_homes({.made = made}, config, DType::kFloat32, DeviceContext(device));
  };
  EXPECT_TRUE(homes_on("cpu", {.shared = true}).are_shared);
  EXPECT_THROW(homes_on("cpu", {.device = PlaceAmount::of(0.5), .shared = true}), ConfigError);
  EXPECT_THROW(homes_on("cpu", {.host = PlaceAmount::of(0.5), .shared = true}), ConfigError);
  EXPECT_THROW(homes_on("cpu", {.direct = true, .shared = true}), ConfigError);
  const testing::EmulatedCuda device(emulated::Mode::kEager);
  EXPECT_THROW(homes_on(device.name(), {.shared = true}), ConfigError);
}

// Layers have been asked for, and have come; then their file ends before them.
TEST(StreamedWeights, ThatAreLostAfterTheyCameEndThePassThatReadZeros) {
  const std::string path = (folder().path() / "lost").string();
  FaultyDisk disk;
  const DiskCallsForTest instead(disk);
  for (const bool are_shared : {false, true}) {
    WeightHomes homes = shared_homes();
    homes.are_shared = are_shared;
    const auto model = model_in_file(path, homes);
    std::int64_t until = 0;  // calls for all layers
    for (const auto& layer : model->weights().streamed().layers) until += std::ssize(layer);
    if (are_shared) until += 1 + std::ssize(model->weights().streamed().tables);
    std::atomic<std::int64_t> calls{0};
    disk.after = [&](DiskCall call) {
      if (call == DiskCall::kFindCached && ++calls == until) {
        std::filesystem::resize_file(path, 64);
      }
    };
    Ended ended;
    {
      Engine engine(model, testing::options("full"));
      SamplingOptions sampling;
      sampling.max_tokens = 6;
      engine.add(testing::prompt(30), sampling);
      ended = run_to_end(engine);
    }
    disk.after = {};
    ASSERT_EQ(ended.errors.size(), 1) << are_shared;
    const std::string text = message_of<DeviceError>(ended.errors.begin()->second);
    EXPECT_NE(text.find(path + ": could not read again"), std::string::npos) << text;
    EXPECT_TRUE(ended.generated.empty()) << "no token is made of zeros";
  }
}

TEST(StreamedWeights, ThatWereNotLoadedAreNamedWhenAnEngineIsMade) {
  const auto model = std::make_shared<DecoderModel>(
      testing::tiny_config(),
      DType::kFloat32,
      "cpu",
      WeightHomes{.layers = place_layer(testing::tiny_config(), {0.0, 0.0}, true)});
  EXPECT_THROW(Engine(model, testing::options("full")), CheckpointError);
}

TEST(StreamedWeights, NeedAFolderForWhatNoFileHas) {
  WeightHomes homes{.layers = place_layer(testing::tiny_config(), {0.0, 0.0}, true),
                    .folder = "/nowhere/at/all"};
  DecoderModel model(testing::tiny_config(), DType::kFloat32, "cpu", std::move(homes));
  EXPECT_THROW(model.weights().load_dummy(1), ConfigError);
}

TEST(ResolveShares, TakesSharesBytesAndWhatFits) {
  const ModelConfig config = testing::tiny_config();
  const auto shares = [&](PlaceAmount device, PlaceAmount host, FreeBytes free = {}) {
    WeightOptions options;
    options.device = device;
    options.host = host;
    const PlaceShares found = resolve_shares(options, config, 4.0, 1000, free);
    return std::pair(found.device, found.host);
  };
  using Kind = PlaceAmount::Kind;
  const PlaceAmount unsaid;
  const PlaceAmount fits{.kind = Kind::kFitting};
  constexpr std::int64_t kMuch = std::int64_t{1} << 40;
  EXPECT_EQ(shares(unsaid, unsaid), std::pair(1.0, 0.0));
  EXPECT_EQ(shares(PlaceAmount::of(0.2), PlaceAmount::of(0.8)), std::pair(0.2, 0.8));
  EXPECT_EQ(shares(unsaid, PlaceAmount::of(0.5)), std::pair(0.0, 0.5));
  EXPECT_EQ(shares(PlaceAmount::of(0.25), unsaid, {.host = kMuch}), std::pair(0.25, 0.75));
  EXPECT_EQ(shares(fits, unsaid, {.device = kMuch, .host = kMuch}), std::pair(1.0, 0.0));
  EXPECT_LT(shares(fits, fits, {.device = 50000, .host = kMuch}).first, 1.0);
  EXPECT_EQ(shares({.kind = Kind::kBytes, .bytes = kMuch}, unsaid), std::pair(1.0, 0.0));
  EXPECT_THROW(shares(PlaceAmount::of(0.5), PlaceAmount::of(0.6)), ConfigError);
}

}  // namespace
}  // namespace hybridgen
