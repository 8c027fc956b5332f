// SPDX-License-Identifier: Apache-2.0
#include "engine/sampling_table.h"

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

// The sampler computes in float32; what lies outside would become infinity or zero there.
constexpr Interval kTemperature{0.0, 1e30};
constexpr Interval kFactor{1e-30, 1e30};
constexpr Interval kMass{1e-30, 1.0};
// These two as in OpenAI's and vLLM's interfaces.
constexpr Interval kPenalty{-2.0, 2.0};
constexpr Interval kBias{-100.0, 100.0};

bool read_ids(const OptionValue& value, std::vector<std::int64_t>& ids) {
  const auto* list = value.as<OptionValue::List>();
  if (list == nullptr) return false;
  ids.clear();
  for (const OptionValue& id : *list) {
    if (!read_whole(id, {}, ids.emplace_back())) return false;
  }
  return true;
}

OptionValue value_of(const std::vector<std::int64_t>& ids) {
  return OptionValue::List(ids.begin(), ids.end());
}

bool read_bias(const OptionValue& value, std::map<std::int64_t, float>& bias) {
  const auto* pairs = value.as<OptionValue::List>();
  if (pairs == nullptr) return false;
  bias.clear();
  for (const OptionValue& pair : *pairs) {
    const auto* items = pair.as<OptionValue::List>();
    std::int64_t id = 0;
    double number = 0.0;
    if (items == nullptr || items->size() != 2) return false;
    if (!read_whole((*items)[0], {}, id) || !read_number((*items)[1], kBias, number)) return false;
    bias[id] = static_cast<float>(number);
  }
  return true;
}

OptionValue value_of(const std::map<std::int64_t, float>& bias) {
  OptionValue::List pairs;
  for (const auto& [id, number] : bias) {
    pairs.push_back(OptionValue::List{id, static_cast<double>(number)});
  }
  return pairs;
}

}  // namespace

const OptionTable<SamplingOptions>& sampling_table() {
  using S = SamplingOptions;
  constexpr Whole kSeeds{0, std::numeric_limits<std::int64_t>::max()};
  static const OptionTable<S> table(
      {option("temperature", &S::temperature, kTemperature)
           .means("0.0 takes the most likely token; sampling begins above."),
       option("top_p", &S::top_p, kMass)
           .means("Restrict sampling to the likeliest tokens of this mass."),
       option("top_k", &S::top_k, Whole{}).means("Restrict sampling to so many; 0: to none."),
       option("min_p", &S::min_p, kShare)
           .means("Restrict sampling by a share of the largest probability."),
       option("repetition_penalty", &S::repetition_penalty, kFactor)
           .means("Above 1.0 makes tokens that occurred before less likely."),
       option("presence_penalty", &S::presence_penalty, kPenalty)
           .means("Above 0.0 makes tokens of the text so far less likely, once each."),
       option("frequency_penalty", &S::frequency_penalty, kPenalty)
           .means("The same, for each time that they occurred."),
       option("logit_bias",
              &S::logit_bias,
              "tuple[tuple[int, float], ...]",
              "pairs of a token id >= 0 and " + kBias.text(),
              read_bias,
              [](const std::map<std::int64_t, float>& bias) { return value_of(bias); })
           .means("Added to logits, by token id."),
       option("seed", &S::seed, kSeeds).means("Makes samples repeatable."),
       option("max_tokens", &S::max_tokens, Whole{1}).means("New tokens at most."),
       option("min_tokens", &S::min_tokens, Whole{})
           .means("New tokens before an ending token or a stop string may end the text."),
       option("stop_token_ids",
              &S::stop_token_ids,
              "tuple[int, ...]",
              "a list of ints >= 0",
              read_ids,
              [](const std::vector<std::int64_t>& ids) { return value_of(ids); })
           .means("Tokens that end the text, besides the model's own."),
       or_word(option("logprobs", &S::num_logprobs, Whole{}), &S::num_logprobs, -1, {})
           .means("Likeliest tokens whose log-probabilities are reported; None: none, 0: that of "
                  "the new token."),
       or_word(option("prompt_logprobs", &S::num_prompt_logprobs, Whole{}),
               &S::num_prompt_logprobs,
               -1,
               {})
           .means("The same for each token of the prompt."),
       option("valid_vocab", &S::valid_vocab, Whole{})
           .means("Ids from here on are padding; 0: there is none.")});
  return table;
}

namespace {

void check_lengths(std::string_view operation, const SamplingOptions& options) {
  if (options.min_tokens <= options.max_tokens) return;
  OptionInfo info = sampling_table().find("min_tokens")->info;
  info.allowed = message("at most max_tokens, which is ", options.max_tokens);
  refuse_option(operation, info, options.min_tokens);
}

}  // namespace

void SamplingOptions::validate() const {
  sampling_table().check("sampling", *this);
  check_lengths("sampling", *this);
}

OptionClass sampling_class() {
  const auto checked = [](const OptionMap& given) {
    constexpr const char* kName = "SamplingParams";
    const SamplingOptions options = sampling_table().read(kName, given);
    if (given.contains("max_tokens")) check_lengths(kName, options);
    return as_written(sampling_table().described(), given);
  };
  const char* summary = "How tokens are drawn, as the engine takes it.";
  return {"SamplingParams", "", summary, sampling_table().described(), checked};
}

}  // namespace hybridgen
