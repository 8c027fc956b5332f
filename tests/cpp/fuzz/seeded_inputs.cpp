// SPDX-License-Identifier: Apache-2.0
// Runs a fuzz target over inputs that follow from their number, where libFuzzer is not at hand:
// 50,000 of them, ten million with HYBRIDGEN_LONG=1. An argument runs that number alone.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

/// Mostly small numbers in front, where sizes are; then anything.
std::vector<std::uint8_t> input_of(std::uint64_t number) {
  std::mt19937_64 draw(number);
  std::vector<std::uint8_t> input(draw() % 3000);
  constexpr std::size_t kHead = 8;
  constexpr std::uint64_t kLikely[] = {0, 1, 4, 8, 16, 32, 64};
  for (std::size_t i = 0; i < input.size(); ++i) {
    const bool is_likely = i < kHead ? draw() % 4 != 0 : draw() % 64 == 0;
    input[i] = static_cast<std::uint8_t>(is_likely ? kLikely[draw() % 7] : draw());
  }
  // Groups of inputs that exist, most of the time: otherwise little gets further.
  if (!input.empty() && input[0] % 2 == 1 && draw() % 8 != 0) {
    for (std::size_t i = kHead - 1; i < input.size() && i < kHead + 256; ++i) {
      input[i] = static_cast<std::uint8_t>((i - kHead + 1) % 4 == 0 ? draw() % 2 : 0);
    }
  }
  return input;
}

}  // namespace

int main(int count, char** arguments) {
  const char* is_long = std::getenv("HYBRIDGEN_LONG");
  const bool runs_all = is_long != nullptr && std::string_view(is_long) == "1";
  std::uint64_t first = 0, end = runs_all ? 10'000'000 : 50'000, whole = 0;
  if (count > 1) {
    first = std::strtoull(arguments[1], nullptr, 10);
    end = first + 1;
  }
  for (std::uint64_t number = first; number < end; ++number) {
    const std::vector<std::uint8_t> input = input_of(number);
    // What a sanitizer reports belongs to the last number that was printed.
    if (number % 10'000 == 0)
      std::fprintf(stderr, "input %llu\n", static_cast<unsigned long long>(number));
    if (LLVMFuzzerTestOneInput(input.data(), input.size()) == 0) ++whole;
  }
  std::printf("%llu of %llu inputs were unpacked, the others refused\n",
              static_cast<unsigned long long>(whole),
              static_cast<unsigned long long>(end - first));
  // A driver whose inputs are all refused tests nothing.
  return end - first > 1 && whole * 4 < end - first ? 1 : 0;
}
