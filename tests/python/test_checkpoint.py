# SPDX-License-Identifier: Apache-2.0
"""Reading checkpoints: every form that is in use, and a clear answer to every damaged one."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import CONFIGS, make_config
from hybridgen import CheckpointError, ConfigError, UnsupportedModelError, _core
from hybridgen.checkpoint import load_model

Checkpoint = Callable[..., Path]
Copy = Callable[[Path], Path]


def recording(real: Any) -> type[Any]:
    """Return a stand-in for the compiled model that keeps the tensors it is given."""

    class RecordingModel:
        def __init__(self, config: Any, **options: Any) -> None:
            model = real(config, **options)
            self.device, self.dtype = model.device, model.dtype
            self.weight_bytes = model.weight_bytes
            self.host_weight_bytes = model.host_weight_bytes
            self.names = model.expected_tensors()
            self.tensors: dict[str, torch.Tensor] = {}

        def expected_tensors(self) -> list[tuple[str, tuple[int, ...]]]:
            return list(self.names)

        def is_read_in_place(self, name: str) -> bool:
            return False

        def load_tensor(self, name: str, tensor: torch.Tensor) -> None:
            assert name not in self.tensors, f"{name} is loaded twice"
            self.tensors[name] = tensor.clone()

        def finish(self) -> None:
            assert set(self.tensors) == {name for name, _ in self.names}

    return RecordingModel


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, torch.Tensor]]:
    """Load a checkpoint and return the tensors that reach the engine."""

    def load(path: Path, **options: Any) -> dict[str, torch.Tensor]:
        with monkeypatch.context() as patch:
            patch.setattr("hybridgen.checkpoint._core.Model", recording(_core.Model))
            tensors: dict[str, torch.Tensor] = load_model(path, **options).model.tensors
            return tensors

    return load


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(content), encoding="utf-8")


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, {"format": "pt"})


def to_pickle(folder: Path) -> None:
    file = folder / "model.safetensors"
    torch.save(load_file(file), folder / "pytorch_model.bin")
    file.unlink()


@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_loads_into_the_real_model(checkpoint: Checkpoint, name: str) -> None:
    loaded = load_model(checkpoint(name))
    assert loaded.eos_token_ids == (1,)
    assert loaded.model.dtype == "float32"


def test_tensors_arrive_unchanged_under_the_engines_names(
    checkpoint: Checkpoint, recorded: Any
) -> None:
    source = load_file(checkpoint("qwen2") / "model.safetensors")
    tensors = recorded(checkpoint("qwen2"))
    assert torch.equal(
        tensors["layers.2.k_proj.bias"], source["model.layers.2.self_attn.k_proj.bias"]
    )
    assert torch.equal(
        tensors["layers.0.ffn_norm.weight"],
        source["model.layers.0.post_attention_layernorm.weight"],
    )
    assert torch.equal(tensors["lm_head.weight"], source["lm_head.weight"])


def test_shards_and_one_file_are_the_same_model(checkpoint: Checkpoint, recorded: Any) -> None:
    sharded = checkpoint("llama", max_shard_size="20KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    assert same(recorded(sharded), recorded(checkpoint("llama")))


def test_a_pickled_file_is_the_same_model(
    checkpoint: Checkpoint, copy_of: Copy, recorded: Any
) -> None:
    folder = copy_of(checkpoint("opt"))
    to_pickle(folder)
    assert same(recorded(folder), recorded(checkpoint("opt")))
    assert same(recorded(folder, load_format="bin"), recorded(checkpoint("opt")))


def test_pickled_shards_are_the_same_model(
    checkpoint: Checkpoint, copy_of: Copy, recorded: Any
) -> None:
    folder = copy_of(checkpoint("opt"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i, part in enumerate((names[:20], names[20:])):
        file = f"pytorch_model-{i}.bin"
        torch.save({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = json.dumps({"weight_map": weight_map})
    (folder / "pytorch_model.bin.index.json").write_text(index, encoding="utf-8")
    assert same(recorded(folder), recorded(checkpoint("opt")))


def test_names_without_the_outer_prefix_are_the_same_model(
    checkpoint: Checkpoint, copy_of: Copy, recorded: Any
) -> None:
    folder = copy_of(checkpoint("opt"))

    def strip(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(folder, strip)
    assert same(recorded(folder), recorded(checkpoint("opt")))


def test_a_tied_head_in_the_file_is_ignored(
    checkpoint: Checkpoint, copy_of: Copy, recorded: Any
) -> None:
    folder = copy_of(checkpoint("llama-tied"))
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": torch.zeros(352, 32)}))
    assert same(recorded(folder), recorded(checkpoint("llama-tied")))


def test_a_file_that_kept_only_the_head_of_a_tied_pair_is_whole(
    checkpoint: Checkpoint, copy_of: Copy, recorded: Any
) -> None:
    folder = copy_of(checkpoint("llama-tied"))
    edit_tensors(folder, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert same(recorded(folder), recorded(checkpoint("llama-tied")))


def test_a_missing_head_that_is_not_tied_is_missing(checkpoint: Checkpoint, copy_of: Copy) -> None:
    folder = copy_of(checkpoint("llama"))
    edit_tensors(folder, lambda t: t.pop("lm_head.weight"))
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.weight$"):
        load_model(folder)


def test_rotary_tables_of_old_files_are_ignored(
    checkpoint: Checkpoint, copy_of: Copy, recorded: Any
) -> None:
    folder = copy_of(checkpoint("llama"))
    extra = {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    edit_tensors(folder, lambda t: t.update(extra))
    assert same(recorded(folder), recorded(checkpoint("llama")))


def test_all_names_that_do_not_fit_are_listed_in_one_error(
    checkpoint: Checkpoint, copy_of: Copy
) -> None:
    folder = copy_of(checkpoint("llama"))

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["model.norm.weight"]
        del tensors["model.layers.0.mlp.up_proj.weight"]
        tensors["model.layers.3.mlp.up_proj.weight"] = torch.zeros(1)

    edit_tensors(folder, edit)
    with pytest.raises(CheckpointError) as caught:
        load_model(folder)
    assert "missing: model.layers.0.mlp.up_proj.weight, model.norm.weight" in str(caught.value)
    assert "unexpected: model.layers.3.mlp.up_proj.weight" in str(caught.value)


def test_a_wrong_shape_names_tensor_file_and_both_shapes(
    checkpoint: Checkpoint, copy_of: Copy
) -> None:
    folder = copy_of(checkpoint("llama"))
    edit_tensors(folder, lambda t: t.update({"model.norm.weight": torch.ones(31)}))
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight in .*safetensors has shape \[31\].*\[32\]"
    ):
        load_model(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_names_tensor_and_file(
    checkpoint: Checkpoint, copy_of: Copy, value: float
) -> None:
    folder = copy_of(checkpoint("llama"))

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = value

    edit_tensors(folder, edit)
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.1\.mlp\.down_proj\.weight in .*model\.safetensors"
    ):
        load_model(folder)


@pytest.mark.parametrize(
    ("dtype", "shown"),
    [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.float64, "F64")],
)
@pytest.mark.parametrize("pickled", [False, True])
def test_weights_of_another_dtype_name_tensor_and_file(
    checkpoint: Checkpoint, copy_of: Copy, dtype: torch.dtype, shown: str, pickled: bool
) -> None:
    folder = copy_of(checkpoint("llama"))
    edit_tensors(
        folder,
        lambda t: t.update({"model.norm.weight": torch.ones(32).to(dtype)}),
    )
    if pickled:
        to_pickle(folder)
        shown = str(dtype).removeprefix("torch.")
    with pytest.raises(
        CheckpointError, match=rf"model\.norm\.weight in .*model.* has dtype {shown}; allowed"
    ):
        load_model(folder)


def test_a_dtype_the_reader_does_not_know_names_the_tensor(
    checkpoint: Checkpoint, copy_of: Copy
) -> None:
    folder = copy_of(checkpoint("llama"))
    file = folder / "model.safetensors"
    content = file.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["model.norm.weight"]["dtype"] = "Q5_K"
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    with pytest.raises(CheckpointError, match=r"model\.safetensors \(model\.norm\.weight.*Q5_K"):
        load_model(folder)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "huge header"])
@pytest.mark.parametrize("pickled", [False, True])
def test_a_damaged_file_is_named(
    checkpoint: Checkpoint, copy_of: Copy, damage: str, pickled: bool
) -> None:
    folder = copy_of(checkpoint("llama"))
    if pickled:
        to_pickle(folder)
    file = folder / ("pytorch_model.bin" if pickled else "model.safetensors")
    content = file.read_bytes()
    file.write_bytes(
        {
            "truncated": content[: len(content) // 2],
            "garbage": b"\x10\0\0\0\0\0\0\0" + b"garbage" * 99,
            "empty": b"",
            "huge header": b"\xff" * 8 + content[8:],
        }[damage]
    )
    if pickled and damage == "huge header":
        file.write_bytes(content[8:])
    with pytest.raises(CheckpointError, match=f"cannot read .*{file.name}"):
        load_model(folder)


def test_a_pickle_that_would_run_code_does_not_run_it(
    checkpoint: Checkpoint, copy_of: Copy, tmp_path: Path
) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "executed"),)

    folder = copy_of(checkpoint("llama"))
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Hostile()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_model(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        load_model(folder)
    assert not (tmp_path / "executed").exists()


def _index(folder: Path, **entries: Any) -> None:
    file = folder / "model.safetensors.index.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["weight_map"] |= {name.replace("__", "."): value for name, value in entries.items()}
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "..",
        "sub/model.safetensors",
        "sub\\model.safetensors",
        "model.safetensors\0",
        "model.bin",
        "",
        7,
        None,
    ],
)
def test_an_index_that_points_out_of_its_folder_is_refused(
    checkpoint: Checkpoint, copy_of: Copy, name: Any
) -> None:
    folder = copy_of(checkpoint("llama", max_shard_size="20KB"))
    (folder.parent / "model.safetensors").write_bytes(
        (checkpoint("llama") / "model.safetensors").read_bytes()
    )
    _index(folder, model__norm__weight=name)
    with pytest.raises(CheckpointError, match=r"index\.json maps model\.norm\.weight to"):
        load_model(folder)


def test_links_of_a_hub_snapshot_are_followed(
    checkpoint: Checkpoint, copy_of: Copy, recorded: Any
) -> None:
    folder = copy_of(checkpoint("llama", max_shard_size="20KB"))
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(blobs / str(i))
        file.symlink_to(Path("..") / "blobs" / str(i))
    assert same(recorded(folder), recorded(checkpoint("llama")))


def test_a_tensor_in_two_shards_is_read_where_the_index_says(
    checkpoint: Checkpoint, copy_of: Copy, recorded: Any
) -> None:
    folder = copy_of(checkpoint("llama", max_shard_size="20KB"))
    for file in sorted(folder.glob("model-*.safetensors")):
        tensors = load_file(file)
        tensors.setdefault("model.norm.weight", torch.full((32,), 7.0))
        save_file(tensors, file)
    assert same(recorded(folder), recorded(checkpoint("llama")))


def test_missing_shards_are_all_named(checkpoint: Checkpoint, copy_of: Copy) -> None:
    folder = copy_of(checkpoint("llama", max_shard_size="20KB"))
    shards = sorted(folder.glob("model-*.safetensors"))
    shards[0].unlink()
    shards[2].unlink()
    with pytest.raises(CheckpointError, match=f"not there: {shards[0].name}, {shards[2].name}"):
        load_model(folder)


def test_a_tensor_missing_in_its_shard_is_named(checkpoint: Checkpoint, copy_of: Copy) -> None:
    folder = copy_of(checkpoint("llama", max_shard_size="20KB"))
    first = sorted(folder.glob("model-*.safetensors"))[0]
    tensors = load_file(first)
    lost = sorted(tensors)[0]
    if len(tensors) == 1:
        tensors["other"] = tensors[lost]
    save_file({n: t for n, t in tensors.items() if n != lost}, first)
    with pytest.raises(CheckpointError, match=rf"not in their file: {lost} \(in {first.name}\)"):
        load_model(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_malformed_index_is_named(checkpoint: Checkpoint, copy_of: Copy, content: str) -> None:
    folder = copy_of(checkpoint("llama", max_shard_size="20KB"))
    (folder / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b""])
def test_a_malformed_config_is_named(checkpoint: Checkpoint, copy_of: Copy, content: bytes) -> None:
    folder = copy_of(checkpoint("llama"))
    (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        load_model(folder)


def test_a_config_that_contradicts_the_weights_is_an_error(
    checkpoint: Checkpoint, copy_of: Copy
) -> None:
    folder = copy_of(checkpoint("llama"))
    edit_config(folder, num_hidden_layers=2)
    with pytest.raises(CheckpointError, match=r"unexpected: model\.layers\.2\."):
        load_model(folder)


def test_an_unsupported_architecture_is_refused_before_any_weight_is_read(
    checkpoint: Checkpoint, copy_of: Copy
) -> None:
    folder = copy_of(checkpoint("llama"))
    edit_config(folder, architectures=["MixtralForCausalLM"], model_type="mixtral")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UnsupportedModelError, match="MixtralForCausalLM"):
        load_model(folder)


def test_a_folder_without_weights_says_what_it_looked_for(
    checkpoint: Checkpoint, copy_of: Copy
) -> None:
    folder = copy_of(checkpoint("llama"))
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"looked for model\.safetensors and .*\.bin"):
        load_model(folder)
    with pytest.raises(CheckpointError, match=r"looked for pytorch_model\.bin"):
        load_model(folder, load_format="bin")


def test_a_folder_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"no config\.json in {tmp_path}"):
        load_model(tmp_path)


def test_a_path_that_does_not_exist_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", str(tmp_path / "missing"), "./missing", "../missing"):
        with pytest.raises(CheckpointError, match="there is no folder"):
            load_model(path)


@pytest.mark.parametrize("name", ["x" * 5000, "~nobody-of-this-name/x", "a/\0b", "x/" * 3000])
def test_a_name_that_can_be_no_folder_is_refused_shortly(name: str) -> None:
    with pytest.raises(CheckpointError, match="there is no folder") as caught:
        load_model(name)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("model", [None, 5, 10**5000, b"x", ["a"]], ids=lambda m: type(m).__name__)
def test_a_model_that_is_no_name_is_refused(model: Any) -> None:
    with pytest.raises(ConfigError, match="allowed: a folder or a hub id"):
        load_model(model)


def test_a_config_that_is_no_regular_file_is_not_waited_for(
    checkpoint: Checkpoint, copy_of: Copy
) -> None:
    folder = copy_of(checkpoint("llama"))
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json: it is no regular file"):
        load_model(folder)


def test_a_file_is_not_a_folder(checkpoint: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match="is a file; pass the folder"):
        load_model(checkpoint("llama") / "config.json")


def test_a_hub_id_that_is_not_cached_says_so_when_offline() -> None:
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE"):
        load_model("nobody/nothing-of-this-name")


@pytest.mark.parametrize(
    ("present", "load_format", "fetched"),
    [
        ("model.safetensors", "auto", ["*.safetensors"]),
        ("pytorch_model.bin", "auto", ["*.safetensors", "pytorch_model*.bin"]),
        ("pytorch_model.bin", "bin", ["pytorch_model*.bin"]),
        ("model.safetensors", "dummy", []),
    ],
)
def test_a_hub_download_fetches_weights_in_one_format_only(
    checkpoint: Checkpoint,
    copy_of: Copy,
    monkeypatch: pytest.MonkeyPatch,
    present: str,
    load_format: str,
    fetched: list[str],
) -> None:
    folder = copy_of(checkpoint("llama"))
    if present == "pytorch_model.bin":
        to_pickle(folder)
    asked: list[str] = []

    def snapshot_download(repo: str, **options: Any) -> str:
        assert repo == "somebody/model"
        assert options["revision"] == "v2"
        assert "*.json" in options["allow_patterns"]
        asked.extend(p for p in options["allow_patterns"] if "safetensors" in p or "bin" in p)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    loaded = load_model("somebody/model", revision="v2", load_format=load_format)
    assert loaded.path == folder
    assert asked == fetched


def test_a_revision_is_for_hub_ids_only(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="revision is 'main' but"):
        load_model(checkpoint("llama"), revision="main")


def test_dummy_weights_need_no_more_than_a_config() -> None:
    fields = json.loads(make_config("llama").to_json_string())
    assert load_model(fields, load_format="dummy").path is None
    with pytest.raises(ConfigError, match="load_format='dummy'"):
        load_model(fields)


def test_dummy_weights_need_only_config_json_in_a_folder(tmp_path: Path) -> None:
    text = make_config("opt-350m").to_json_string()
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert load_model(tmp_path, load_format="dummy").path == tmp_path


def test_an_unknown_load_format_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="load_format is 'npz'; allowed: auto"):
        load_model(checkpoint("llama"), load_format="npz")


def test_ending_tokens_of_both_files_count(checkpoint: Checkpoint, copy_of: Copy) -> None:
    folder = copy_of(checkpoint("llama"))
    edit_config(folder, eos_token_id=[5, 6])
    (folder / "generation_config.json").write_text('{"eos_token_id": 9}', encoding="utf-8")
    assert load_model(folder).eos_token_ids == (5, 6, 9)
