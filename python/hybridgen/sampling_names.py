# SPDX-License-Identifier: Apache-2.0
"""Names that other libraries have for how to sample, and what to write instead."""

from __future__ import annotations

ELSEWHERE = {
    name: f"write {ours}"
    for ours, names in {
        "max_tokens=..., which counts new tokens and not the prompt": ["max_length"],
        "min_tokens=..., which counts new tokens and not the prompt": ["min_length"],
        "max_tokens=...": [
            "max_completion_tokens",
            "max_output_tokens",
            "max_gen_len",
            "num_predict",
            "n_predict",
        ],
        "min_tokens=...": ["min_new_tokens"],
        "n=...": ["num_return_sequences", "num_samples"],
        "stop=...": ["stop_strings", "stop_sequences", "stop_words", "until"],
        "stop_token_ids=...": ["eos_token_id", "stop_tokens"],
        "repetition_penalty=...": ["repeat_penalty"],
        "logprobs=...": ["top_logprobs", "num_logprobs", "output_scores"],
        "seed=...": ["random_seed", "sampling_seed"],
        "temperature=...": ["temp"],
        "temperature=0.0": ["greedy"],
    }.items()
    for name in names
} | {
    name: f"leave it out: {reason}"
    for reason, names in {
        "there is no beam search": [
            "best_of",
            "num_beams",
            "num_beam_groups",
            "use_beam_search",
            "beam_width",
            "length_penalty",
            "early_stopping",
            "diversity_penalty",
        ],
        "of ways to restrict sampling there are top_p, top_k and min_p": [
            "typical_p",
            "top_a",
            "tfs_z",
            "mirostat",
            "epsilon_cutoff",
            "eta_cutoff",
            "penalty_alpha",
        ],
        "of ways to weigh or forbid tokens there is logit_bias": [
            "bad_words",
            "bad_words_ids",
            "allowed_token_ids",
            "suppress_tokens",
            "no_repeat_ngram_size",
            "logits_processors",
            "logits_processor",
            "guided_decoding",
            "structured_outputs",
            "response_format",
        ],
        "prompt_logprobs=0 gives the log-probability of each prompt token": ["echo"],
        "prompts are never cut; max_model_len of LLM is their limit": ["truncate_prompt_tokens"],
        "the cache is always used": ["use_cache"],
    }.items()
    for name in names
}
