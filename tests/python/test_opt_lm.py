# SPDX-License-Identifier: Apache-2.0
"""FlexGen's Python names: OptLM's results are transformers', in every placement, row by row."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hybridgen as hg
from flexgen_runs import (
    ALL_GPU,
    PAD,
    continued_by_transformers,
    converted,
    different_rows,
    opt_lm,
    policy,
    step_after_writes,
)
from hybridgen.errors import ConfigError, DeviceError
from hybridgen.flexgen.engine_choices import EngineChoices
from hybridgen.flexgen.flex_opt import (
    Env,
    ExecutionEnv,
    OptLM,
    TorchDevice,
    TorchDisk,
    TorchMixedDevice,
    get_opt_config,
    run_flexgen,
    run_flexllmgen,
    timers,
)
from hybridgen.flexgen.opt_config import NoSuchShapeError
from hybridgen.flexgen.policy import Policy
from hybridgen.flexgen.pytorch_backend import DeviceType, TorchLink, general_copy
from trained import folder_of

NEW = 6


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(tmp_path_factory.mktemp("opt_weights"))


@pytest.fixture(scope="module")
def reference() -> Callable[[Any], Any]:
    return continued_by_transformers(NEW)


@pytest.fixture
def made(weights: Path, tmp_path: Path) -> Iterator[Callable[..., OptLM]]:
    models: list[OptLM] = []

    def make(*percent: float, choices: dict[str, Any] | None = None, **fields: Any) -> OptLM:
        wanted = policy(*percent, **fields)
        models.append(opt_lm(weights, tmp_path / "offload", wanted, **(choices or {})))
        return models[-1]

    yield make
    for model in models:
        model.delete_all_weights()


# ----------------------------------------------------------------------------------------- results

PLACEMENTS: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "all on the GPU": (ALL_GPU, {}),
    "cache on the CPU": ((100, 0, 0, 100, 100, 0), {}),
    "attention on the CPU": ((100, 0, 0, 100, 100, 0), {"cpu_cache_compute": True}),
    "weights on the CPU": ((0, 100, 100, 0, 100, 0), {}),
    "activations on the CPU": ((20, 80, 0, 100, 0, 100), {"cpu_cache_compute": True}),
    "weights on the disk": ((0, 0, 100, 0, 100, 0), {}),
    "weights and cache in two places": ((50, 0, 0, 100, 100, 0), {"cpu_cache_compute": True}),
    "cache on GPU and CPU": ((100, 0, 50, 50, 100, 0), {}),
    "cache on GPU and CPU, which attends": ((100, 0, 50, 50, 100, 0), {"cpu_cache_compute": True}),
    "cache on the disk": ((100, 0, 0, 0, 100, 0), {}),
    "cache on all three": ((100, 0, 34, 34, 100, 0), {"gpu_batch_size": 4, "num_gpu_batches": 1}),
    "cache on the disk, attention on the CPU": (
        (100, 0, 0, 50, 100, 0),
        {"cpu_cache_compute": True, "overlap": False},
    ),
    "no overlap": ((100, 0, 0, 100, 100, 0), {"overlap": False}),
    "layers fused": ((100, 0, 0, 100, 100, 0), {"sep_layer": False, "pin_weight": False}),
    "one row in each of four batches": (
        (100, 0, 0, 100, 100, 0),
        {"gpu_batch_size": 1, "num_gpu_batches": 4, "cpu_cache_compute": True},
    ),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_every_row_is_continued_as_transformers_does(
    made: Callable[..., OptLM], reference: Callable[[Any], Any], name: str
) -> None:
    percent, fields = PLACEMENTS[name]
    rows = different_rows()
    found = made(*percent, **fields).generate(rows, NEW)
    assert found.dtype == np.int32
    assert np.array_equal(found, reference(rows))


def test_ids_of_the_same_policy_are_the_same_on_the_emulated_device(
    weights: Path, tmp_path: Path, reference: Callable[[Any], Any]
) -> None:
    env = ExecutionEnv.create(str(tmp_path), "emulated")
    choices = EngineChoices(dtype="float32")
    rows = different_rows()
    expected = reference(rows)
    for cache in ((0, 100), (50, 50), (50, 0)):
        for on_cpu in (False, True):
            wanted = policy(100, 0, *cache, 100, 0, cpu_cache_compute=on_cpu)
            model = OptLM("tiny-opt", env, str(weights), wanted, engine=choices)
            assert np.array_equal(model.generate(rows, NEW), expected)
            model.delete_all_weights()


def test_the_cache_divided_by_tokens_says_the_same(
    made: Callable[..., OptLM], reference: Callable[[Any], Any]
) -> None:
    rows = different_rows(length=300)
    for fields in ({}, {"cpu_cache_compute": True}):
        model = made(100, 0, 40, 60, 100, 0, choices={"splits_tokens": True}, **fields)
        assert np.array_equal(model.generate(rows, NEW), reference(rows))
        assert model.llm.stats.evicted_bytes > 0


def drawn_policy(data: st.DataObject) -> Policy:
    batch, batches = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    gpu = data.draw(st.integers(0, 100))
    cpu = data.draw(st.integers(0, 100 - gpu))
    cache_gpu = data.draw(st.integers(0, 100))
    cache_cpu = data.draw(st.integers(0, 100 - cache_gpu))
    act = data.draw(st.sampled_from([(100, 0), (0, 100), (0, 0)]))
    shares = (gpu, cpu, cache_gpu, cache_cpu, *act)
    fields = {
        name: data.draw(st.booleans())
        for name in ("overlap", "sep_layer", "pin_weight", "cpu_cache_compute")
    }
    return policy(*shares, gpu_batch_size=batch, num_gpu_batches=batches, **fields)


def expect_as_plain(weights: Path, offload: Path, wanted: Policy, device: str) -> None:
    """Compare a policy's ids with those of all on the GPU."""
    batch, batches = wanted.gpu_batch_size, wanted.num_gpu_batches
    model = opt_lm(weights, offload, wanted, device=device)
    found = model.generate(different_rows(batch * batches, length=24, seed=batch), 4)
    model.delete_all_weights()
    assert np.array_equal(found, plain(weights, batch, batches))


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_ids_do_not_depend_on_a_drawn_policy(
    data: st.DataObject, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expect_as_plain(weights, tmp_path_factory.mktemp("offload"), drawn_policy(data), "cpu")


@settings(max_examples=3, deadline=None)
@given(data=st.data())
def test_nor_do_they_on_the_emulated_device(
    data: st.DataObject, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    expect_as_plain(weights, tmp_path_factory.mktemp("offload"), drawn_policy(data), "emulated")


@functools.cache
def plain(weights: Path, batch: int, batches: int) -> Any:
    wanted = policy(gpu_batch_size=batch, num_gpu_batches=batches)
    model = opt_lm(weights, weights, wanted)
    return model.generate(different_rows(batch * batches, length=24, seed=batch), 4)


def test_rows_lie_where_the_policy_says_and_the_disk_is_clean_afterwards(
    made: Callable[..., OptLM], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = different_rows(length=700)
    expected = made().generate(rows, NEW)
    # Two batches of two rows: of each one row on the GPU, the other on the disk.
    model = made(100, 0, 50, 0, 100, 0)
    step_after_writes(model, monkeypatch)
    assert np.array_equal(model.generate(rows, NEW), expected)
    stats = model.llm.stats
    token = 2 * 4 * model.config.num_hidden_layers * model.config.hidden_size
    on_disk = sum(int((row != PAD).sum()) for row in rows[[1, 3]])
    assert 0.5 * on_disk * token < stats.disk_bytes_written <= on_disk * token
    assert stats.disk_bytes_read > stats.disk_bytes_written
    assert stats.evicted_bytes <= (on_disk + 2 * NEW) * token
    assert not list((tmp_path / "offload").iterdir())


def test_sparse_values_are_the_same_wherever_the_cache_lies(made: Callable[..., OptLM]) -> None:
    rows = different_rows()
    dense = made().generate(rows, NEW)
    on_gpu = made(attn_sparsity=0.3).generate(rows, NEW)
    for cache in ((0, 100), (0, 0), (50, 50)):
        elsewhere = made(100, 0, *cache, 100, 0, attn_sparsity=0.3).generate(rows, NEW)
        assert np.array_equal(on_gpu, elsewhere)
    assert not np.array_equal(on_gpu, dense)


def test_a_cache_in_4_bits_takes_a_third_of_the_bytes(made: Callable[..., OptLM]) -> None:
    rows = different_rows(length=200)
    read = {}
    for compressed in (False, True):
        model = made(100, 0, 0, 100, 100, 0, compress_cache=compressed)
        found = model.generate(rows, NEW)
        read[compressed] = model.llm.stats.host_key_bytes_read
        assert found.shape == (4, 200 + NEW)
    assert read[True] < read[False] / 3


def test_weights_on_the_disk_are_read_out_of_their_own_files(weights: Path, tmp_path: Path) -> None:
    rows = different_rows()
    offload = tmp_path / "offload"
    for dtype in ("float16", "float32"):  # as they lie, and as none lies
        plain = opt_lm(weights, offload, policy(), dtype=dtype)
        model = opt_lm(weights, offload, policy(0, 0, 100, 0, 100, 0), dtype=dtype)
        assert np.array_equal(model.generate(rows, NEW), plain.generate(rows, NEW))
        stats = model.llm.stats
        each = 12 * model.config.hidden_size**2  # but for the FFN, which is narrower here
        each -= 4 * model.config.hidden_size**2
        size = 2 if dtype == "float16" else 4
        assert stats.weight_disk_bytes == size * 4 * each
        assert stats.weight_bytes_read >= NEW * stats.weight_disk_bytes
        assert model.device_peak_bytes < plain.device_peak_bytes
        plain.delete_all_weights()
        model.delete_all_weights()
    assert not list(offload.iterdir())


def test_a_plan_says_what_a_policys_rows_take(made: Callable[..., OptLM]) -> None:
    model = made(0, 0, 0, 100, 100, 0)
    plan = model.plan(300, NEW)
    assert plan.together == 4
    assert plan.tiers["disk"]["weights"] == model.llm.stats.weight_disk_bytes > 0
    row = model.config.num_hidden_layers * model.config.hidden_size * 4
    for side in ("keys", "values"):
        assert plan.tiers["dram"][side] == pytest.approx(4 * 300 * row, rel=0.1)
    rows = different_rows(length=300)
    model.generate(rows, NEW)
    parts = ("weights", "keys", "values", "workspaces", "engine")
    most = sum(plan.tiers["device"][part] for part in parts)
    assert model.device_peak_bytes <= most


def test_a_block_of_batches_reads_weights_once_for_all_of_them(
    weights: Path, tmp_path: Path
) -> None:
    for length in (40, 1500):
        for batches in (1, 4):
            wanted = policy(0, 0, 100, 0, 100, 0, gpu_batch_size=1, num_gpu_batches=batches)
            model = opt_lm(weights, tmp_path, wanted)
            model.generate(different_rows(batches, length), NEW)
            read = model.llm.stats.weight_bytes_read
            each = model.llm.stats.weight_disk_bytes
            model.delete_all_weights()
            # A pass for the prompt, however long, one for each further token, and as much of what
            # is read ahead as has come.
            assert NEW * each <= read < (NEW + 1) * each


def test_weights_in_4_bits_are_the_engines_own(made: Callable[..., OptLM]) -> None:
    rows = different_rows()
    plain, model = made(), made(compress_weight=True)
    plain.generate(rows, NEW)
    found = model.generate(rows, NEW)
    held = hg.WeightConfig(format="int4", head="int4", embeddings="int4", group=64, min_max=True)
    options = hg.SamplingParams(max_tokens=NEW, ignore_eos=True)
    prompts = [[int(token) for token in row if token != PAD] for row in rows]
    with hg.LLM(folder_of("tiny-opt"), dtype="float32", device="cpu", weights=held) as llm:
        assert found[:, 40:].tolist() == llm.generate_ids(prompts, options)
    assert model.device_peak_bytes < plain.device_peak_bytes


# ------------------------------------------------------------------------------- pads and endings


def test_a_row_of_pads_stays_one_and_changes_no_other(
    made: Callable[..., OptLM], reference: Callable[[Any], Any]
) -> None:
    rows = different_rows()
    rows[2] = PAD
    found = made(100, 0, 0, 100, 100, 0).generate(rows, NEW)
    assert (found[2] == PAD).all()
    others = [0, 1, 3]
    assert np.array_equal(found[others], reference(rows[others]))


def test_pads_within_a_row_are_masked_as_flexgen_masks_them(made: Callable[..., OptLM]) -> None:
    rows = different_rows(length=20)
    with_pads = np.insert(rows, [12, 12, 15], PAD, axis=1)
    without = made().generate(rows, NEW)[:, 20:]
    assert np.array_equal(made().generate(with_pads, NEW)[:, 23:], without)


def test_a_row_ends_at_the_stop_token_and_is_pads_behind_it(made: Callable[..., OptLM]) -> None:
    rows = different_rows()
    model = made()
    free = model.generate(rows, NEW)
    stop = int(free[1, 42])
    found = model.generate(rows, NEW, stop=stop)
    assert model.output_ids is found
    for row in range(4):
        new = list(free[row, 40:])
        end = new.index(stop) + 1 if stop in new else NEW
        assert list(found[row, 40:]) == new[:end] + [PAD] * (NEW - end)
        assert bool(model.stopped[row, 0]) == (stop in new)


@pytest.mark.parametrize("batches", [(4, 1), (2, 2)])
def test_once_every_row_has_stopped_no_step_is_run(
    made: Callable[..., OptLM], batches: tuple[int, int]
) -> None:
    rows = np.repeat(different_rows()[:1], 4, axis=0)
    model = made(gpu_batch_size=batches[0], num_gpu_batches=batches[1], overlap=False)
    first = int(model.generate(rows, 1)[0, 40])
    timers("generate").reset()
    found = model.generate(rows, NEW, stop=first)
    assert len(timers("generate").costs) == 1
    assert (found[:, 41:] == PAD).all()


def test_stop_id_0_is_a_stop_and_none_is_none(made: Callable[..., OptLM]) -> None:
    model = made()
    assert model._llm is not None
    model.generate(different_rows(), 2, stop=0)
    assert model._sampling().extra_stop_ids == (0,)
    model.generate(different_rows(), 2)
    assert model._sampling().extra_stop_ids == ()


def test_a_text_ends_a_row_where_there_is_a_tokenizer(made: Callable[..., OptLM]) -> None:
    model = made()
    free = model.generate(different_rows(), NEW)
    word = model.codec.decode([int(free[0, 41])], skip_special_tokens=False)
    found = model.generate(different_rows(), NEW, stop=word)
    assert (found[0, 42:] == PAD).all()
    assert (found[0, :42] == free[0, :42]).all()


def test_a_text_without_a_tokenizer_is_a_warning(tmp_path: Path) -> None:
    config = dataclasses.replace(
        get_opt_config("opt-125m"),
        num_hidden_layers=1,
        hidden_size=64,
        n_head=2,
        input_dim=64,
        ffn_embed_dim=128,
        vocab_size=100,
    )
    env = ExecutionEnv.create(str(tmp_path), "cpu")
    model = OptLM(config, env, "__DUMMY__", policy())
    rows = np.arange(8, 48).reshape(4, 10)
    with pytest.warns(UserWarning, match="no tokenizer in the weights' folder"):
        assert model.generate(rows, 3, stop="\n").shape == (4, 13)
    model.delete_all_weights()


def test_generation_goes_on_behind_the_models_own_ending_token(
    made: Callable[..., OptLM],
) -> None:
    model = made()
    model.generate(different_rows(), 2)
    assert model._sampling().ignore_eos


def test_samples_follow_torchs_global_generator(made: Callable[..., OptLM]) -> None:
    model, rows = made(), different_rows()

    def sampled(seed: int, temperature: float = 5.0) -> list[Any]:
        torch.manual_seed(seed)
        options = {"do_sample": True, "temperature": temperature}
        return model.generate(rows, NEW, **options)[:, 40:].tolist()

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert sampled(1, 1e-7) == model.generate(rows, NEW)[:, 40:].tolist()


# ------------------------------------------------------------------------------------------ inputs


def test_inputs_are_lists_arrays_or_tensors(made: Callable[..., OptLM]) -> None:
    model, rows = made(), different_rows()
    expected = model.generate(rows, 2)
    for inputs in (rows.tolist(), tuple(map(tuple, rows)), torch.tensor(rows), rows.astype("i4")):
        assert np.array_equal(model.generate(inputs, 2), expected)
    again = model.generate(expected, 2)  # a result is an input, as chat programs have it
    assert np.array_equal(again[:, :42], expected)


@pytest.mark.parametrize(
    ("inputs", "options", "words"),
    [
        ([[1, 2], [3]], {}, "unequal length|two dimensions"),
        ([1, 2], {}, "in two dimensions"),
        ([[1, 2]], {}, r"inputs have 1 rows; allowed: 4, gpu_batch_size times num_gpu_batches"),
        (np.ones((4, 3)), {}, "allowed: integers"),
        (np.ones((4, 0), int), {}, "not empty"),
        (np.full((4, 3), 744), {}, r"a token id is 744; allowed: an int in \[0, 743\]"),
        (np.full((4, 3), 7), {"debug_mode": "all"}, "allowed: None, fewer_batch, breakdown"),
        (np.full((4, 3), 7), {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (np.full((4, 2000), 7), {"max_new_tokens": 100}, "a row has 2000 tokens.*2048 together"),
    ],
)
def test_inputs_that_cannot_be_are_refused(
    made: Callable[..., OptLM], inputs: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        made().generate(inputs, **options)


# ------------------------------------------------------------------------------------------ timing


def test_every_executed_token_has_a_cost_and_calls_add_up_until_reset(
    made: Callable[..., OptLM],
) -> None:
    model, rows, timer = made(), different_rows(), timers("generate")
    timer.reset()
    model.generate(rows, NEW)
    assert len(timer.costs) == NEW
    model.generate(rows, NEW, cut_gen_len=3)
    assert len(timer.costs) == NEW + 3
    assert timer.elapsed("sum") == pytest.approx(sum(timer.costs))
    timer.reset()
    found = model.generate(rows, NEW, cut_gen_len=2)
    assert len(timer.costs) == 2
    assert (found[:, 42:] == PAD).all()
    assert (found[:, 40:42] != PAD).all()


@pytest.mark.parametrize("mode", ["fewer_batch", "breakdown"])
def test_debug_modes_let_a_few_steps_stand_for_all(
    made: Callable[..., OptLM], mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    timer = timers("generate")
    timer.reset()
    found = made(100, 0, 0, 100, 100, 0).generate(different_rows(), 20, debug_mode=mode)
    assert len(timer.costs) == 20
    assert len(set(timer.costs[1:])) == 1
    assert min(timer.costs) > 0
    assert found.shape == (4, 60)
    words = capsys.readouterr().out
    assert ("load_weight            (per-layer):" in words) == (mode == "breakdown")
    assert ("compute_layer_decoding (per-batch):" in words) == (mode == "breakdown")


# ------------------------------------------------------------------------------------ other names


def test_models_are_named_or_lie_in_folders_of_any_family(tmp_path: Path) -> None:
    env = ExecutionEnv.create(str(tmp_path), "cpu")
    model = OptLM(str(folder_of("tiny-llama")), env, "unused", policy())
    assert model.config.n_head == model.llm.model_config["num_heads"]
    rows = np.random.default_rng(0).integers(5, 700, (4, 12))
    assert model.generate(rows, 2).shape == (4, 14)
    model.delete_all_weights()


def test_weights_come_and_go_without_harm(made: Callable[..., OptLM]) -> None:
    model, rows = made(), different_rows()
    expected = model.generate(rows, 2)
    model.init_all_weights()
    assert np.array_equal(model.generate(rows, 2), expected)
    model.delete_all_weights()
    model.delete_all_weights()
    with pytest.raises(ConfigError, match="call init_all_weights first"):
        model.generate(rows, 2)
    model.init_all_weights()
    assert np.array_equal(model.generate(rows, 2), expected)
    assert (model.num_layers, model.num_gpu_batches) == (2 * 4 + 2, 2)
    assert made(sep_layer=False).num_layers == 4 + 2


def test_a_half_built_model_hides_no_cause(tmp_path: Path) -> None:
    env = ExecutionEnv.create(str(tmp_path), "cpu")
    with pytest.raises(ConfigError, match=r"model name is 'opt-9b'; allowed: opt-125m"):
        OptLM("opt-9b", env, str(tmp_path), policy())
    with pytest.raises(NoSuchShapeError, match="pass the checkpoint's folder") as caught:
        get_opt_config("facebook/opt-350m")
    assert isinstance(caught.value, NotImplementedError)
    with pytest.raises(ConfigError, match="there are 2 arguments behind the policy"):
        OptLM("opt-125m", env, "_DUMMY_", policy(), 1, 2)


@pytest.mark.parametrize(
    ("name", "model_gib", "cache_mib"),
    [
        ("opt-125m", 0.230, 0.035),
        ("facebook/opt-1.3b", 2.443, 0.188),
        ("huggingface/OPT-2.7B", 4.929, 0.313),
        ("opt-6.7b", 12.386, 0.5),
        ("opt-13b", 23.921, 0.781),
        ("opt-iml-max-30b", 55.803, 1.313),
        ("galactica-30b", 55.800, 1.313),
        ("opt-66b", 122.375, 2.25),
        ("opt-175b", 325.175, 4.5),
        ("opt-175b-stage", 82.157, 1.125),
    ],
)
def test_sizes_are_those_that_flexgen_prints(name: str, model_gib: float, cache_mib: float) -> None:
    config = get_opt_config(name)
    assert config.model_bytes() / 2**30 == pytest.approx(model_gib, abs=0.0006)
    assert config.cache_bytes(1, 1) / 2**20 == pytest.approx(cache_mib, abs=0.0006)
    assert config.hidden_bytes(3, 5) == 2 * 3 * 5 * config.hidden_size
    assert config.name == name.split("/")[-1].lower()
    assert get_opt_config(name, max_seq_len=4096).max_seq_len == 4096


def test_devices_have_flexgens_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = Env.create(str(tmp_path / "new" / "folder"), "cpu")
    assert Env is ExecutionEnv
    assert (tmp_path / "new" / "folder").is_dir()
    gpu, cpu, disk = TorchDevice("cpu"), env.cpu, env.disk
    by_hand = ExecutionEnv(gpu=gpu, cpu=cpu, disk=disk, mixed=TorchMixedDevice([gpu, cpu, disk]))
    assert [by_hand.gpu.device_type, disk.device_type] == [DeviceType.CPU, DeviceType.DISK]
    current, peak = cpu.mem_stats()
    assert 0 < current <= peak
    cpu.print_stats()
    assert capsys.readouterr().out.startswith("TorchDevice: cpu\n  cur_mem: 0.")
    here, there = cpu.allocate((2, 3), np.float16), disk.allocate((2, 3), np.float16)
    here.data.fill_(2)
    general_copy(there, None, here, None)
    here.data.zero_()
    general_copy(here, (slice(0, 1), slice(0, 3)), there, (slice(1, 2), slice(0, 3)))
    assert here.data.tolist() == [[2, 2, 2], [0, 0, 0]]
    disk.delete(there)
    assert not list((tmp_path / "new" / "folder").iterdir())
    cpu.synchronize()
    env.close_copy_threads()
    link = TorchLink(cpu, disk, 2.0, 4.0)
    assert (link.io_time(cpu, disk, 8), link.io_time(disk, cpu, 8)) == (4, 2)
    assert run_flexgen is run_flexllmgen


def test_an_offload_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeviceError, match="is a file; allowed: a folder"):
        TorchDisk(str(tmp_path / "file"))
    with pytest.raises(DeviceError, match=r"\[make folder\].*name another one"):
        TorchDisk(str(tmp_path / "file" / "below"))
