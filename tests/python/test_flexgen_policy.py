# SPDX-License-Identifier: Apache-2.0
"""What a FlexGen policy means to the engine: tables, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import hybridgen as hg
from flexgen_runs import policy as any_policy
from hybridgen.errors import ConfigError
from hybridgen.flexgen.placement import CPU_ATTENTION, InfiniGenFork, Placement, place
from hybridgen.flexgen.policy import Policy
from hybridgen.methods import H2O, FlexGen, InfiniGen, MoELightning
from hybridgen.opt_shapes import SHAPES, hf_config


def policy(*percent: float, **fields: Any) -> Policy:
    """Return a policy of one batch of four rows, with these percentages and fields."""
    return any_policy(*percent, **({"gpu_batch_size": 4, "num_gpu_batches": 1} | fields))


def placed(*percent: float, **fields: Any) -> Placement:
    return place(policy(*percent, **fields), device_is_host=False)


# ---------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        (0, 0),
        (12, 0),
        (13, 4),  # the attention's output
        (25, 4),
        (26, 20),  # the second matrix of the FFN
        (37, 20),
        (38, 24),  # values
        (62, 24),
        (63, 28),  # keys
        (75, 28),
        (76, 44),  # the first matrix of the FFN
        (87, 44),
        (88, 48),  # queries: all
        (100, 48),
    ],
)
def test_shares_of_weights_are_the_steps_that_flexgen_rounds_to(asked: int, share: int) -> None:
    """Of 48 twelfths of a square of the hidden size in a layer; for all sizes of OPT alike."""
    for name in ("opt-125m", "opt-30b", "opt-175b"):
        layers, hidden = SHAPES[name].layers, SHAPES[name].hidden
        found = placed(asked, 100 - asked, 100, 0, 100, 0).weights
        if asked < 100:
            assert found == pytest.approx(
                {"device": asked / 100, "host": 1 - asked / 100}, abs=1e-5
            )
        plan = hg.plan(
            hf_config(SHAPES[name]),
            dtype="float16",
            device="emulated",
            prompt_tokens=8,
            method="full",
            weights=hg.WeightConfig(**found),
        )
        on_host = sum(plan.tiers[tier]["weights"] for tier in plan.tiers if tier != "device")
        assert on_host == 2 * layers * hidden**2 * (48 - share) // 4


def test_weights_have_three_homes_as_in_flexgens_readme_example() -> None:
    found = placed(50, 10, 0, 100, 0, 100).weights
    assert found == pytest.approx({"device": 0.5, "host": 0.1}, abs=1e-5)
    config = hf_config(SHAPES["opt-66b"])
    options = {"dtype": "float16", "device": "emulated", "prompt_tokens": 8, "method": "full"}
    plan = hg.plan(config, weights=hg.WeightConfig(**found), **options)
    # q, k and the first matrix of the FFN are on the disk, all others on the GPU.
    assert plan.tiers["disk"]["weights"] == 2 * 64 * 6 * 9216**2
    # No weight lives on the host: it holds the pinned room that two layers are read into.
    assert plan.tiers["dram"]["weights"] == 2 * 2 * 6 * 9216**2


# ------------------------------------------------------------------------------------------ cache


@pytest.mark.parametrize(
    ("percent", "batch", "batches", "rows"),
    [
        ((100, 0), 2, 2, "gggg"),
        ((0, 100), 2, 2, "cccc"),
        ((0, 0), 2, 2, "dddd"),
        ((50, 50), 1, 1, "c"),
        ((50, 50), 4, 2, "ggccggcc"),
        ((50, 25), 4, 2, "ggcdggcd"),
        ((30, 30), 4, 1, "gcdd"),
        ((99, 1), 4, 1, "gggc"),
        ((99, 0), 4, 1, "gggd"),
    ],
)
def test_a_cache_is_shared_by_whole_sequences_rounded_down(
    percent: tuple[int, int], batch: int, batches: int, rows: str
) -> None:
    found = placed(100, 0, *percent, 100, 0, gpu_batch_size=batch, num_gpu_batches=batches)
    names = {"device": "g", "dram": "c", "disk": "d"}
    assert "".join(names[home] for home in found.rows) == rows
    assert found.micro_batch == batch


def test_batches_pass_a_layer_together_where_the_device_is_the_cpu() -> None:
    block = any_policy(100, 0, 0, 100, 100, 0, gpu_batch_size=2, num_gpu_batches=3)
    assert place(block, device_is_host=True).micro_batch == 6
    for share in (0, 50):  # the host works on one meanwhile
        shares = {"cache_gpu_percent": share, "cache_cpu_percent": 100 - share}
        attending = dataclasses.replace(block, cpu_cache_compute=True, **shares)
        assert place(attending, device_is_host=True).micro_batch == 2


def test_by_tokens_every_row_is_divided() -> None:
    found = place(policy(100, 0, 30, 70, 100, 0), device_is_host=True, splits_tokens=True)
    assert (found.device_tokens, set(found.rows)) == (0.3, {"dram"})
    found = place(policy(100, 0, 30, 20, 100, 0), device_is_host=True, splits_tokens=True)
    assert (found.device_tokens, set(found.rows)) == (0.3, {"disk"})


@pytest.mark.parametrize(
    ("percent", "fields", "method"),
    [
        ((100, 0, 100, 0, 100, 0), {}, "full"),
        ((100, 0, 100, 0, 100, 0), {"cpu_cache_compute": True}, "full"),
        ((100, 0, 0, 100, 100, 0), {}, FlexGen()),
        ((100, 0, 50, 50, 100, 0), {}, FlexGen()),
        ((100, 0, 0, 0, 100, 0), {}, FlexGen()),
        ((100, 0, 0, 0, 100, 0), {"attn_sparsity": 0.1}, FlexGen(attn_sparsity=0.1)),
        (
            (100, 0, 0, 0, 100, 0),
            {"attn_sparsity": 0.1, "cpu_cache_compute": True},
            FlexGen(attn_sparsity=0.1),
        ),
        (
            (100, 0, 0, 100, 100, 0),
            {"cpu_cache_compute": True, "num_gpu_batches": 3},
            MoELightning(micro_batches=3),
        ),
        ((100, 0, 50, 50, 100, 0), {"cpu_cache_compute": True}, CPU_ATTENTION),
        ((100, 0, 100, 0, 100, 0), {"hh_ratio": 0.2}, H2O(heavy=0.2, recent=0.2)),
        ((100, 0, 0, 100, 100, 0), {"hh_ratio": 0.2}, H2O(heavy=0.2, recent=0.2, home="host")),
    ],
)
def test_a_policy_chooses_one_of_the_engines_methods(
    percent: tuple[int, ...], fields: dict[str, Any], method: object
) -> None:
    assert placed(*percent, **fields).method == method


def test_infinigens_fork_chooses_its_method_over_a_cache_on_the_cpu() -> None:
    fork = InfiniGenFork(alpha=5, partial_weight_ratio=0.3, max_num_kv=40)
    found = place(policy(100, 0, 0, 100, 100, 0), device_is_host=True, fork=fork)
    assert found.method == InfiniGen(alpha=5.0, column_share=0.3, max_fetch=40)
    with pytest.raises(ConfigError, match=r"write --percent 100 0 0 100 100 0"):
        place(policy(), device_is_host=True, fork=fork)
    for fields in ({"cpu_cache_compute": True}, {"compress_cache": True}, {"attn_sparsity": 0.5}):
        with pytest.raises(ConfigError, match="with InfiniGen's flags"):
            place(policy(100, 0, 0, 100, 100, 0, **fields), device_is_host=True, fork=fork)


def test_a_cache_in_4_bits_lies_on_the_host_and_says_so() -> None:
    found = placed(compress_cache=True)
    assert (found.precision, set(found.rows)) == ("int4", {"dram"})
    assert any("lies in DRAM, not on the GPU" in note for note in found.notes)


def test_weights_in_4_bits_have_flexgens_groups() -> None:
    assert placed().weights == {}
    found = placed(compress_weight=True).weights
    four_bits = {"format": "int4", "head": "int4", "embeddings": "int4"}
    assert found == four_bits | {"group": 64, "min_max": True}


def test_what_is_done_elsewhere_than_asked_is_said() -> None:
    assert placed().notes == ()
    assert any("activations" in note for note in placed(100, 0, 100, 0, 0, 0).notes)
    assert any("activations" in note for note in placed(100, 0, 100, 0, 0, 100).notes)
    on_host = place(policy(100, 0, 100, 0, 0, 100), device_is_host=True)
    assert on_host.notes == ()
    sparse = placed(100, 0, 0, 0, 100, 0, attn_sparsity=0.1, cpu_cache_compute=True)
    assert any("on the device, not on the CPU" in note for note in sparse.notes)


# ---------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("percent", "fields", "words"),
    [
        ((80, 30, 100, 0, 100, 0), {}, "weights are 80 on the GPU and 30 on the CPU"),
        ((100, 0, 60, 50, 100, 0), {}, "cache are 60"),
        ((100, 0, -1, 50, 100, 0), {}, "cache are -1"),
        ((100, 0, 100, 0, 50, 50), {}, "activations are 50 % on the GPU.*allowed: 100 % in one"),
        ((100, 0, 100, 0, 50, 0), {}, "50 % on the disk"),
        ((), {"gpu_batch_size": 0}, "gpu_batch_size is 0; allowed: an int >= 1"),
        ((), {"attn_sparsity": 0.0}, "attn_sparsity is 0"),
        ((), {"attn_sparsity": 1.5}, "attn_sparsity is 1.5"),
        ((), {"attn_sparsity": 0.5, "compress_cache": True}, "allowed: one of them"),
        ((100, 0, 50, 50, 100, 0), {"hh_ratio": 0.1}, "the cache is divided"),
        ((100, 0, 0, 0, 100, 0), {"hh_ratio": 0.1}, "or on the disk"),
        ((), {"hh_ratio": 0.1, "attn_sparsity": 0.5}, "hh_ratio is 0.1 with attn_sparsity 0.5"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_with_the_way_out(
    percent: tuple[int, ...], fields: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        placed(*percent, **fields)


@pytest.mark.parametrize(
    ("which", "change", "words"),
    [
        ("weight", {"num_bits": 8}, "allowed: 4 bits, not symmetric"),
        ("cache", {"symmetric": True}, "allowed: 4 bits, not symmetric"),
        ("weight", {"group_size": 48}, "allowed: 32, 64, 128"),
        ("cache", {"group_size": 128}, "allowed: 64"),
    ],
)
def test_only_flexgens_compression_is_taken(which: str, change: dict[str, Any], words: str) -> None:
    base = policy()
    config = dataclasses.replace(getattr(base, f"comp_{which}_config"), **change)
    fields = {f"comp_{which}_config": config}
    assert placed(**fields).precision == "full"  # not read while it is off
    with pytest.raises(ConfigError, match=words):
        placed(**fields, **{f"compress_{which}": True})


# ------------------------------------------------------------------------------------------- types


def test_a_policy_is_flexgens_frozen_dataclass() -> None:
    names = [field.name for field in dataclasses.fields(Policy)]
    assert names[:17] == [
        "gpu_batch_size",
        "num_gpu_batches",
        "w_gpu_percent",
        "w_cpu_percent",
        "cache_gpu_percent",
        "cache_cpu_percent",
        "act_gpu_percent",
        "act_cpu_percent",
        "overlap",
        "sep_layer",
        "pin_weight",
        "cpu_cache_compute",
        "attn_sparsity",
        "compress_weight",
        "comp_weight_config",
        "compress_cache",
        "comp_cache_config",
    ]
    mixed = policy(20, 70, 10, 50, 0, 100)
    assert (mixed.w_disk_percent, mixed.cache_disk_percent, mixed.act_disk_percent) == (10, 40, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        mixed.overlap = False  # type: ignore[misc]
    with pytest.raises(TypeError, match="missing"):
        Policy(1, 1)  # type: ignore[call-arg]
    assert "Policy(gpu_batch_size=4, num_gpu_batches=1, w_gpu_percent=20" in repr(mixed)
