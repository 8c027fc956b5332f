# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint's ``generation_config.json`` means here.

Every field that transformers knows is one of three: it has a counterpart in SamplingParams, it
never changes the text that one model gives (caches, outputs, speculation), or it changes the text
and has no counterpart; then it is named, and so is a field that nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ._checks import brief, plain
from .errors import CheckpointError

_COUNTERPARTS = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    "stop_strings": "stop",
    "repetition_penalty": "repetition_penalty",
    "num_return_sequences": "n",
}

# Without a top_k transformers samples from 50 tokens.
_SAMPLING_COUNTERPARTS = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0}

_READ_ELSEWHERE = ("do_sample", "eos_token_id", "pad_token_id", "bos_token_id")

_NO_EFFECT = (
    # of caches and speed
    "use_cache cache_config max_cache_len prefill_chunk_size compile_config disable_compile "
    "low_memory continuous_batching_config return_legacy_cache "
    # of what is returned beside the tokens
    "output_attentions output_hidden_states output_scores output_logits return_dict_in_generate "
    # of guessing ahead, which keeps the text
    "use_mtp is_assistant num_assistant_tokens num_assistant_tokens_schedule "
    "assistant_confidence_threshold prompt_lookup_num_tokens max_matching_ngram_size "
    "assistant_early_exit assistant_lookbehind target_lookbehind assistant_ensemble_weight "
    "speculation_type "
    # of numbers that are sound, and of models with an encoder
    "renormalize_logits remove_invalid_values decoder_start_token_id "
    # of the file
    "transformers_version use_model_defaults"
).split()


_JSON = (bool, int, float, str, list, tuple, dict)


def _is_not(*neutral: object) -> Callable[[object], bool]:
    """Return a test of JSON values; what is none, such as an array, is no neutral value."""
    return lambda value: not isinstance(value, _JSON) or value not in neutral


_CHANGES_TEXT: dict[str, Callable[[object], bool]] = {
    "max_length": _is_not(),
    "min_length": _is_not(0),
    "max_time": _is_not(),
    "num_beams": _is_not(1),
    "cache_implementation": lambda value: not _is_not("quantized")(value),
    "encoder_repetition_penalty": _is_not(1),
    "no_repeat_ngram_size": _is_not(0),
    "encoder_no_repeat_ngram_size": _is_not(0),
    "bad_words_ids": _is_not([]),
    "force_words_ids": _is_not([]),
    "constraints": _is_not([]),
    "forced_bos_token_id": _is_not(-1),
    "forced_eos_token_id": _is_not(-1),
    "exponential_decay_length_penalty": _is_not(),
    "suppress_tokens": _is_not([]),
    "begin_suppress_tokens": _is_not([]),
    "sequence_bias": _is_not([], {}),
    "token_healing": _is_not(False),
    "guidance_scale": _is_not(1),
    "watermarking_config": _is_not({}),
    "penalty_alpha": _is_not(0),
    "dola_layers": _is_not(),
}
_CHANGES_SAMPLES: dict[str, Callable[[object], bool]] = {
    "top_h": _is_not(),
    "typical_p": _is_not(1),
    "epsilon_cutoff": _is_not(0),
    "eta_cutoff": _is_not(0),
}
_CHANGES_BEAMS: dict[str, Callable[[object], bool]] = {
    "early_stopping": _is_not(False),
    "length_penalty": _is_not(1),
    "diversity_penalty": _is_not(0),
    "num_beam_groups": _is_not(1),
}


def translate(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a generation config as fields of SamplingParams, and what has no counterpart there.

    Parameters
    ----------
    content : dict
        The parsed ``generation_config.json``; null counts as absent.

    Returns
    -------
    fields : dict
        Of SamplingParams.
    left_out : list of str
        The other fields that would change the text, each as ``name=value``.

    Raises
    ------
    CheckpointError
        If ``do_sample`` is neither true nor false.
    """
    given = {name: value for name, value in content.items() if value is not None}
    samples = given.get("do_sample", False)
    if not isinstance(samples, bool):
        raise CheckpointError(
            f"[generation_config.json] do_sample is {brief(samples)}; allowed: true or false"
        )
    fields = {ours: given[theirs] for theirs, ours in _COUNTERPARTS.items() if theirs in given}
    if samples:
        fields |= {name: given.get(name, value) for name, value in _SAMPLING_COUNTERPARTS.items()}
        _as_transformers_clips(fields)
    # Otherwise the file may keep a temperature all the same; transformers ignores it too.
    return fields, _left_out(given, samples)


def _as_transformers_clips(fields: dict[str, Any]) -> None:
    """Give values that transformers reads as "no restriction", or as greedy, their meaning here."""
    top_p = fields["top_p"]
    if isinstance(top_p, int | float) and top_p > 1:
        fields["top_p"] = 1.0
    if isinstance(top_p, int | float) and top_p == 0:
        fields |= {"top_p": 1.0, "temperature": 0.0}


def _left_out(given: dict[str, Any], samples: bool) -> list[str]:
    active = dict(_CHANGES_TEXT)
    if samples:
        active |= _CHANGES_SAMPLES
    if _is_not(1)(given.get("num_beams", 1)):
        active |= _CHANGES_BEAMS
    # The newer spelling of a limit wins.
    for newer, older in (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length")):
        if newer in given:
            active[older] = lambda _: False
    known = {
        *_COUNTERPARTS,
        *_SAMPLING_COUNTERPARTS,
        *_READ_ELSEWHERE,
        *_NO_EFFECT,
        *_CHANGES_TEXT,
        *_CHANGES_SAMPLES,
        *_CHANGES_BEAMS,
    }
    return [
        f"{plain(name)}={brief(value)}"
        for name, value in given.items()
        if (active[name](value) if name in active else name not in known)
        and not name.startswith("_")
    ]
