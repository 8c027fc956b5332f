# SPDX-License-Identifier: Apache-2.0
"""GGUF files are read as llama.cpp's library reads them, and run as the models they came from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Type

from conftest import MODEL_FOLDERS
from get_smollm2 import gguf_file
from gguf_models import add_byte_level, with_weights, write_gguf
from hybridgen import (
    LLM,
    CheckpointError,
    ConfigError,
    CpuConfig,
    SamplingParams,
    UnsupportedModelError,
    _core,
    plan,
)
from hybridgen.gguf_file import read_gguf
from hybridgen.gguf_model import hf_config_of, weights_of
from planned_weights import assert_planned_as_held

CPU = CpuConfig(threads=1, device_threads=1)
GREEDY = SamplingParams(max_tokens=64, ignore_eos=True)
PROMPT = [1, 40, 7, 300, 12, 99, 5, 230, 17, 3]
TYPES = (Type.F32, Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q4_K, Type.Q5_K)
TYPES += (Type.Q6_K,)


def trained_model(name: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        MODEL_FOLDERS / name, dtype=torch.float32
    ).eval()


def tokens_of(model: Any) -> list[int]:
    """Greedy tokens of transformers."""
    made = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=64, min_new_tokens=64, do_sample=False
    )
    return list(map(int, made[0, len(PROMPT) :]))


def our_tokens(path: Path, **options: Any) -> list[int]:
    with LLM(path, device="cpu", method="full", cpu=CPU, **options) as llm:
        return llm.generate_ids([PROMPT], GREEDY)[0]


# ------------------------------------------------------------------------------------------ blocks


def random_rows(kind: Type, rows: int, blocks: int) -> np.ndarray:
    """Any bytes, but for scales, which are small numbers."""
    rng = np.random.default_rng(int(kind))
    size, bytes_of_block = gguf.GGML_QUANT_SIZES[kind]
    data = rng.integers(0, 256, (rows, blocks, bytes_of_block), np.uint8)
    scales = {Type.Q8_0: [0], Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q6_K: [208]}
    for at in scales.get(kind, [0, 2] if size == 256 else []):
        numbers = rng.standard_normal((rows, blocks, 1)).astype(np.float16)
        numbers.flat[::7] = np.float16(3e-7)  # subnormal
        data[:, :, at : at + 2] = numbers.view(np.uint8)
    if size == 1:
        plain = {Type.F32: np.float32, Type.F16: np.float16}.get(kind)
        numbers = rng.standard_normal((rows, blocks))
        if plain is None:
            return gguf.quants.quantize(numbers.astype(np.float32), kind).reshape(rows, -1)
        return numbers.astype(plain).view(np.uint8).reshape(rows, -1)
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_is_restored_bit_for_bit(kind: Type) -> None:
    data = random_rows(kind, 37, 3)
    expected = gguf.quants.dequantize(data, kind)
    ours = _core.restore_gguf(int(kind), torch.from_numpy(data), "float32").numpy()
    np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))
    half = _core.restore_gguf(int(kind), torch.from_numpy(data), "bfloat16")
    torch.testing.assert_close(half, torch.from_numpy(expected).bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in TYPES[:3]])
def test_codes_scales_and_minima_mean_the_restored_numbers(kind: Type) -> None:
    data = random_rows(kind, 19, 2)
    coded = _core.split_gguf(int(kind), torch.from_numpy(data))
    numbers = numbers_of(coded, gguf.quants.dequantize(data, kind).shape[1])
    np.testing.assert_array_equal(numbers, gguf.quants.dequantize(data, kind))


def numbers_of(coded: dict[str, Any], inputs: int) -> np.ndarray:
    """What codes mean, computed in float32 from the layout that kernels/coded_rows.h states."""
    codes = coded["codes"].numpy()
    if coded["bits"] == 4:
        blocks = codes.reshape(len(codes), -1, 16)
        numbers = np.concatenate([blocks & 15, blocks >> 4], axis=2).reshape(len(codes), -1)
        numbers = numbers.astype(np.float32) - (8 if coded["minima"] is None else 0)
    else:
        numbers = codes.view(np.int8).astype(np.float32)
    numbers = numbers[:, :inputs]
    scales = coded["scales"].float().numpy().repeat(coded["group"], axis=1)[:, :inputs]
    if coded["minima"] is None:
        return scales * numbers
    return scales * numbers + coded["minima"].float().numpy().repeat(coded["group"], axis=1)


@pytest.mark.parametrize("kind", [Type.Q8_0, Type.Q4_1, Type.Q4_K, Type.Q6_K])
def test_a_scale_that_is_no_number_is_refused(kind: Type) -> None:
    data = random_rows(kind, 2, 1)
    at = 208 if kind == Type.Q6_K else 0
    data[1, at : at + 2] = np.array([np.nan], np.float16).view(np.uint8)
    with pytest.raises(CheckpointError, match="scale is NaN or infinite"):
        _core.split_gguf(int(kind), torch.from_numpy(data))


# ------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2"])
def test_a_float32_file_gives_the_tokens_of_the_checkpoint_it_came_from(
    name: str, tmp_path: Path
) -> None:
    model = trained_model(name)
    write_gguf(tmp_path / "model.gguf", model)
    expected = our_tokens(MODEL_FOLDERS / name, dtype="float32")
    assert our_tokens(tmp_path / "model.gguf") == expected == tokens_of(model)


@pytest.mark.parametrize("kind", [Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1])
@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2"])
def test_other_types_give_the_tokens_that_transformers_finds_with_the_restored_weights(
    name: str, kind: Type, tmp_path: Path
) -> None:
    model = trained_model(name)
    restored = write_gguf(tmp_path / "model.gguf", model, kind=kind)
    ours = our_tokens(tmp_path / "model.gguf", dtype="float32")
    assert ours == tokens_of(with_weights(model, restored))


def test_biases_and_tied_heads_are_read(tmp_path: Path, reference: Callable[[str], Any]) -> None:
    for name in ("llama-biased", "llama-tied", "llama-wide-heads", "qwen2-tied"):
        model = reference(name)
        write_gguf(tmp_path / f"{name}.gguf", model)
        assert our_tokens(tmp_path / f"{name}.gguf") == tokens_of(model), name


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (Type.F32, "float32"),
        (Type.F16, "float16"),
        (Type.BF16, "bfloat16"),
        (Type.Q4_0, "bfloat16"),
    ],
)
def test_it_runs_in_the_dtype_of_most_weights_and_in_bfloat16_where_they_are_quantised(
    kind: Type, dtype: str, tmp_path: Path
) -> None:
    write_gguf(tmp_path / "model.gguf", trained_model("tiny-llama"), kind=kind)
    found = plan(tmp_path / "model.gguf", prompt_tokens=8, device="cpu")
    assert found.dtype == dtype


def test_linear_and_yarn_scalings_become_those_of_config_json(tmp_path: Path) -> None:
    model = trained_model("tiny-llama")

    def rope_of(change: Callable[[gguf.GGUFWriter], None]) -> dict[str, Any]:
        write_gguf(tmp_path / "model.gguf", model, change=change)
        return dict(hf_config_of(read_gguf(tmp_path / "model.gguf"))["rope_parameters"])

    def linear(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    def yarn(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(512)

    assert rope_of(linear) == {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}
    found = rope_of(yarn)
    assert found["rope_type"] == "yarn"
    assert (found["factor"], found["original_max_position_embeddings"]) == (4.0, 512)
    assert found["attention_factor"] == pytest.approx(0.1 * np.log(4.0) + 1.0)


def test_the_factors_of_llama3_are_read_from_their_tensor(
    tmp_path: Path, reference: Callable[[str], Any]
) -> None:
    model = reference("llama3")
    scaled = model.model.rotary_emb.inv_freq
    plain = 50000.0 ** -(torch.arange(0, 8, 2) / 8)
    write_gguf(tmp_path / "model.gguf", model, more={"rope_freqs.weight": (plain / scaled).numpy()})
    assert our_tokens(tmp_path / "model.gguf") == tokens_of(model)


# ----------------------------------------------------------------------------------------- folders


def test_a_folder_stands_for_the_one_model_in_it(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf", trained_model("tiny-llama"))
    with LLM(tmp_path, device="cpu", cpu=CPU) as llm:
        assert llm.path == tmp_path / "a.gguf"
    shutil.copyfile(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(CheckpointError, match=r"2 GGUF models: a\.gguf, b\.gguf; pass the name"):
        LLM(tmp_path, device="cpu")
    # Beside a whole checkpoint of another format it has to be asked for.
    folder = tmp_path / "both"
    shutil.copytree(MODEL_FOLDERS / "tiny-qwen2", folder)
    shutil.copyfile(tmp_path / "a.gguf", folder / "a.gguf")
    with LLM(folder, device="cpu", cpu=CPU) as llm:
        assert llm.model_config["architecture"] == "qwen2"
    with LLM(folder, device="cpu", cpu=CPU, load_format="gguf") as llm:
        assert llm.model_config["architecture"] == "llama"
    with pytest.raises(ConfigError, match=r"load_format is 'bin' and .* is a GGUF file"):
        LLM(tmp_path / "a.gguf", load_format="bin")


def test_a_split_model_is_read_from_any_of_its_parts(tmp_path: Path) -> None:
    model = trained_model("tiny-llama")
    write_gguf(tmp_path / "whole.gguf", model)
    parts = tmp_path / "parts"
    parts.mkdir()
    write_gguf(parts / "model.gguf", model, split_max_tensors=15)
    files = sorted(parts.iterdir())
    assert [file.name for file in files] == [f"model-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    expected = our_tokens(tmp_path / "whole.gguf")
    assert our_tokens(parts) == our_tokens(files[2]) == expected
    kept = files[1].read_bytes()
    files[1].unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.gguf is not there.*3 parts"):
        LLM(files[0])
    files[1].write_bytes(files[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"part 2 \(from 0\) of 3; its name says 1 of 3"):
        LLM(files[0])
    files[1].write_bytes(kept)
    assert our_tokens(parts) == expected


# ---------------------------------------------------------------------------------------- refusals


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        LLM(path, device="cpu", **options)
    return str(caught.value)


def test_types_and_architectures_that_are_not_read_are_named(tmp_path: Path) -> None:
    model, file = trained_model("tiny-llama"), tmp_path / "model.gguf"
    write_gguf(file, model, kind=Type.Q5_0)
    assert "has the type Q5_0; allowed: F32, F16, BF16, Q8_0" in refusal(file)
    model.config.model_type = "gemma2"
    write_gguf(file, model)
    assert "general.architecture is 'gemma2'" in refusal(file)
    assert "allowed: llama, qwen2, qwen3" in refusal(file)


def test_fields_that_change_results_are_refused_by_name(tmp_path: Path) -> None:
    model, file = trained_model("tiny-llama"), tmp_path / "model.gguf"
    write_gguf(file, model, change=lambda writer: writer.add_expert_count(8))
    assert "llama.expert_count is 8" in refusal(file)
    write_gguf(file, model, change=lambda writer: writer.add_expert_count(0))
    our_tokens(file)
    write_gguf(file, model, change=lambda writer: writer.add_sliding_window(64))
    assert "sliding_window is 64" in refusal(file)


def test_versions_and_byte_orders_that_are_not_read_are_named(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, trained_model("tiny-llama"))
    whole = file.read_bytes()
    file.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + whole[8:])
    assert "GGUF version 1; allowed: 2, 3" in refusal(file)
    file.write_bytes(b"GGUF" + (3).to_bytes(4, "big") + whole[8:])
    assert "is big-endian; allowed: little-endian" in refusal(file)
    # Version 2 has the same layout.
    file.write_bytes(b"GGUF" + (2).to_bytes(4, "little") + whole[8:])
    assert len(our_tokens(file)) == 64
    file.write_bytes(b"")
    assert "cannot read" in refusal(file)
    file.write_bytes(b"PK\x03\x04" + whole[4:])
    assert "no GGUF file" in refusal(file)
    file.write_bytes(whole[: len(whole) // 2])
    assert "the file is damaged or incomplete" in refusal(file)


# --------------------------------------------------------------------------------------- tokenizer


TEXTS = [
    "The quick brown fox, 12345 times; don't can't WE'LL.",
    "  two  spaces\n\n\tand lines \n end ",
    "Żółć, naïve café, 東京は夜の七時, Привет мир",
    "emoji 🙂🚀👩‍👩‍👧 €£¥ x² ½",
    "",
]


def test_the_tokenizer_of_the_file_is_the_checkpoint_s_own(
    tmp_path: Path, reference: Callable[[str], Any], tokenizer: Any
) -> None:
    template = "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}"
    write_gguf(
        tmp_path / "model.gguf",
        reference("qwen2"),
        tokenizer,
        change=lambda writer: writer.add_chat_template(template),
    )
    with LLM(tmp_path / "model.gguf", device="cpu", cpu=CPU) as llm:
        ours = llm.get_tokenizer()
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert ours.encode(text) == ids
            assert ours.decode(ids) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert ours.encode("<s>a</s>") == tokenizer.encode("<s>a</s>")
        assert (ours.bos_token, ours.eos_token) == ("<s>", "</s>")
        assert llm.eos_token_ids == (1,)
        assert ours.chat_template == template
        assert llm.chat([{"role": "user", "content": "a"}], SamplingParams(max_tokens=2))


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "tekken", "gpt-2", "smollm", "default"])
def test_words_are_cut_as_the_named_pre_tokenizer_cuts_them(
    pre: str, tmp_path: Path, tokenizer: Any
) -> None:
    """As transformers cuts them where it knows the name."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import (
        GGUF_PRE_TOKENIZER_SPLITS,
        convert_gguf_tokenizer,
    )

    from hybridgen.gguf_tokenizer import gguf_tokenizer

    writer = gguf.GGUFWriter(tmp_path / "words.gguf", "llama")
    add_byte_level(writer, tokenizer, len(tokenizer), pre)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours = gguf_tokenizer(read_gguf(tmp_path / "words.gguf"))

    def words(backend: Any, text: str) -> list[str]:
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]

    backend = ours.backend_tokenizer
    assert "".join(words(backend, "x 123 y")) == "xĠ123Ġy"
    if pre in GGUF_PRE_TOKENIZER_SPLITS:
        state = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
        fields = {
            "tokenizer_type": "gpt2",
            "pre_tokenizer_type": pre,
            "tokens": sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__),
            "merges": [" ".join(merge) for merge in state["merges"]],
        }
        theirs, _ = convert_gguf_tokenizer("llama", fields)
        for text in TEXTS:
            assert words(backend, text) == words(theirs, text)
    digits = {"llama-bpe": ["123", "45"], "gpt-2": ["12345"], "default": ["123", "45"]}
    assert words(backend, "12345") == digits.get(pre, list("12345"))


def test_an_unknown_pre_tokenizer_is_named_and_another_tokenizer_may_be_given(
    tmp_path: Path, reference: Callable[[str], Any], tokenizer: Any
) -> None:
    file = tmp_path / "model.gguf"

    def rename(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.pre"].value = "viking"

    write_gguf(file, reference("llama"), tokenizer, change=rename)
    assert "tokenizer.ggml.pre 'viking'; allowed: default, gpt-2" in refusal(file)
    with LLM(file, tokenizer=tokenizer, device="cpu", cpu=CPU) as llm:
        assert llm.generate("ab", SamplingParams(max_tokens=2))


PIECES = ["▁", "a", "b", "c", "▁a", "ab", "▁ab", "bc", "abc", "▁abc", "ca", "aa", "▁aa", "cab"]


def sentence_pieces(text: str, scores: dict[str, float]) -> list[str]:
    """llama.cpp's own rule: join the two neighbours whose piece has the highest score, leftmost."""
    parts = list(("▁" + text).replace(" ", "▁")) if text else []
    while True:
        pairs = [
            (-scores[parts[i] + parts[i + 1]], i)
            for i in range(len(parts) - 1)
            if parts[i] + parts[i + 1] in scores
        ]
        if not pairs:
            return parts
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def test_sentence_pieces_join_by_their_scores(tmp_path: Path) -> None:
    from hybridgen.gguf_tokenizer import gguf_tokenizer

    rng = np.random.default_rng(3)
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    words = ["<unk>", "<s>", "</s>", *raw, *PIECES, "<tool>"]
    scores = [0.0] * 259 + [float(x) for x in rng.permutation(len(PIECES))] + [0.0]
    writer = gguf.GGUFWriter(tmp_path / "words.gguf", "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(words)
    writer.add_token_scores(scores)
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * len(PIECES) + [4])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    ours = gguf_tokenizer(read_gguf(tmp_path / "words.gguf"))
    by_piece = dict(zip(PIECES, scores[259:], strict=False))
    for _ in range(200):
        text = "".join(rng.choice(list("abc "), rng.integers(1, 12)))
        ids = ours.encode(text)
        assert [words[i] for i in ids] == ["<s>", *sentence_pieces(text, by_piece)], text
        assert ours.decode(ids, skip_special_tokens=True) == text
    # Other characters are spelled in bytes, and pieces that are no text stay whole.
    assert [words[i] for i in ours.encode("é")][1:] == ["▁", "<0xC3>", "<0xA9>"]
    assert ours.decode(ours.encode("aé"), skip_special_tokens=True) == "aé"
    assert "<tool>" in [words[i] for i in ours.encode("a<tool>b")]


def test_smollm2_says_from_its_own_file_what_transformers_says_with_its_numbers(
    smollm2: Path,
) -> None:
    file = gguf_file(smollm2)
    messages = [{"role": "user", "content": "Name 3 rivers. Price: $12,345.67"}]
    with LLM(file, device="cpu", method="full", dtype="float32") as llm:
        made = llm.chat(messages, SamplingParams(max_tokens=24, ignore_eos=True))[0]
    tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2)
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    assert made.prompt_token_ids == ids[0].tolist()
    model = transformers.AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    numbers = {name: w.restored("float32") for name, w in weights_of(read_gguf(file)).items()}
    model.load_state_dict(numbers, strict=False)
    expected = model.generate(ids, max_new_tokens=24, min_new_tokens=24, do_sample=False)
    assert made.outputs[0].token_ids == expected[0, ids.shape[1] :].tolist()


def test_quantised_tensors_are_held_as_the_codes_that_they_are(tmp_path: Path) -> None:
    model, file = trained_model("tiny-llama"), tmp_path / "model.gguf"
    sizes = {}
    for kind in (Type.F32, Type.Q8_0, Type.Q4_1, Type.Q4_0):
        write_gguf(file, model, kind=kind)
        with LLM(file, device="cpu", cpu=CPU, dtype="float32") as llm:
            sizes[kind] = llm.model.weights.weight_bytes / sum(
                p.numel() for p in model.parameters()
            )
    assert sizes[Type.F32] == 4.0
    assert sizes[Type.Q8_0] == pytest.approx(1 + 2 / 32, abs=0.03)
    assert sizes[Type.Q4_1] == pytest.approx(0.5 + 4 / 32, abs=0.03)
    assert sizes[Type.Q4_0] == pytest.approx(0.5 + 2 / 32, abs=0.03)


@pytest.mark.parametrize("kind", [Type.F32, Type.BF16, Type.Q8_0, Type.Q4_0, Type.Q4_1])
def test_a_plan_counts_a_gguf_model_as_it_is_held(kind: Type, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(file, trained_model("tiny-llama"), kind=kind)
    assert_planned_as_held(file, device="cpu")
    dense = plan(file, prompt_tokens=8, load_format="dummy", dtype="bfloat16", device="cpu")
    with LLM(file, load_format="dummy", dtype="bfloat16", device="cpu", cpu=CPU) as llm:
        assert dense.tiers["device"]["weights"] == llm.model.weights.weight_bytes
