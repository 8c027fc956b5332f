# SPDX-License-Identifier: Apache-2.0
"""Options: what is accepted, how it is normalised, and what the refusals say."""

from __future__ import annotations

import copy
import dataclasses
import errno
import inspect
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hybridgen
from hybridgen import (
    LLM,
    ConfigError,
    CpuConfig,
    KVConfig,
    QueryConfig,
    SamplingParams,
    SchedulerConfig,
    _core,
)
from hybridgen.config import METHOD_OPTIONS

ALL_CONFIGS = [
    KVConfig,
    SchedulerConfig,
    CpuConfig,
    QueryConfig,
    SamplingParams,
    *(options for options in METHOD_OPTIONS if options.method != "full"),
]


@pytest.mark.parametrize("config_class", ALL_CONFIGS)
def test_defaults_are_valid_frozen_and_survive_pickling(config_class: type[Any]) -> None:
    config = config_class()
    assert pickle.loads(pickle.dumps(config)) == config
    assert config_class(**dataclasses.asdict(config)) == config
    assert copy.copy(config) == copy.deepcopy(config) == dataclasses.replace(config) == config
    assert hash(config_class()) == hash(config)
    first = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, first, None)


@pytest.mark.parametrize("config_class", ALL_CONFIGS)
def test_help_shows_every_option_with_its_default(config_class: type[Any]) -> None:
    parameters = inspect.signature(config_class).parameters
    for field in dataclasses.fields(config_class):
        assert parameters[field.name].default == field.default
        assert field.name in (config_class.__doc__ or "")
        assert f"{field.name}={getattr(config_class(), field.name)!r}" in repr(config_class())


@pytest.mark.parametrize("config_class", ALL_CONFIGS)
def test_fields_are_keyword_only(config_class: type[Any]) -> None:
    with pytest.raises(TypeError):
        config_class("auto")


@pytest.mark.parametrize(
    ("config_class", "wrong", "meant"),
    [
        (KVConfig, "device_token", "device_tokens"),
        (SchedulerConfig, "strategie", "strategy"),
        (CpuConfig, "thread", "threads"),
        (QueryConfig, "first_layers", "first_layer"),
        (SamplingParams, "max_token", "max_tokens"),
        (SamplingParams, "max_new_token", "max_new_tokens"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(
    config_class: type[Any], wrong: str, meant: str
) -> None:
    with pytest.raises(ConfigError, match=f"unknown option '{wrong}'; did you mean '{meant}'"):
        config_class(**{wrong: 1})


@pytest.mark.parametrize(
    ("config_class", "field", "value"),
    [
        (KVConfig, "device_tokens", -1),
        (KVConfig, "device_tokens", 1.5),
        (KVConfig, "device_tokens", math.nan),
        (KVConfig, "device_tokens", True),
        (KVConfig, "device_tokens", "all"),
        (KVConfig, "device_tokens", None),
        (KVConfig, "dram", 0),
        (KVConfig, "dram", "12 parsecs"),
        (KVConfig, "dram", "-1GiB"),
        (KVConfig, "dram", 1.5),
        (KVConfig, "dram", True),
        (KVConfig, "cxl", -1),
        (KVConfig, "cxl", None),
        (KVConfig, "cxl", "much"),
        (KVConfig, "cxl", True),
        (KVConfig, "cxl_node", -1),
        (KVConfig, "cxl_node", "auto"),
        (KVConfig, "cxl_node", 1024),
        (KVConfig, "disk", "/tmp"),
        (KVConfig, "disk", {"path": "/tmp"}),
        (KVConfig, "placement", "random"),
        (KVConfig, "placement", None),
        (KVConfig, "shrink_windows", 1),
        (KVConfig, "scoring", "int2"),
        (KVConfig, "keys", "int2"),
        (KVConfig, "keys", 8),
        (KVConfig, "values", "fp8"),
        (KVConfig, "values", None),
        (KVConfig, "candidates_per_k", 3),
        (SchedulerConfig, "k", 0),
        (SchedulerConfig, "k", -5),
        (SchedulerConfig, "k", 1.0),
        (SchedulerConfig, "k", 0.0),
        (SchedulerConfig, "k", math.nan),
        (SchedulerConfig, "k", True),
        (SchedulerConfig, "k", "every"),
        (SchedulerConfig, "strategy", "both"),
        (SchedulerConfig, "k_min", "profile.json"),
        (SchedulerConfig, "k_min", 0),
        (SchedulerConfig, "k_min", 32.0),
        (SchedulerConfig, "k_max", 0),
        (SchedulerConfig, "k_max", "all"),
        (SchedulerConfig, "return_to_post", "always"),
        (SchedulerConfig, "grow", 0.9),
        (SchedulerConfig, "grow", math.nan),
        (SchedulerConfig, "shrink", 1.5),
        (SchedulerConfig, "interval", 0),
        (SchedulerConfig, "warmup", -1),
        (SchedulerConfig, "deadband", -0.1),
        (SchedulerConfig, "adapt_k", 1),
        (QueryConfig, "mode", "exactly"),
        (QueryConfig, "first_layer", 0),
        (CpuConfig, "threads", 0),
        (CpuConfig, "threads", True),
        (CpuConfig, "threads", 2.0),
        (CpuConfig, "device_threads", "many"),
        (CpuConfig, "numa", "bind"),
        (CpuConfig, "numa", True),
        (CpuConfig, "numa", -1),
        (CpuConfig, "numa", 1.0),
        (CpuConfig, "numa", 1024),
        (CpuConfig, "numa", None),
        (CpuConfig, "threads", "off"),
        (CpuConfig, "isa", None),
        (SamplingParams, "n", 0),
        (SamplingParams, "temperature", -0.1),
        (SamplingParams, "temperature", math.nan),
        (SamplingParams, "temperature", math.inf),
        (SamplingParams, "temperature", "hot"),
        (SamplingParams, "top_p", 0.0),
        (SamplingParams, "top_p", 1.1),
        (SamplingParams, "top_k", -2),
        (SamplingParams, "top_k", 2.5),
        (SamplingParams, "min_p", 1.5),
        (SamplingParams, "max_tokens", 0),
        (SamplingParams, "min_tokens", -1),
        (SamplingParams, "min_tokens", 17),
        (SamplingParams, "stop", [""]),
        (SamplingParams, "stop", 5),
        (SamplingParams, "stop_token_ids", [-1]),
        (SamplingParams, "stop_token_ids", "ab"),
        (SamplingParams, "ignore_eos", "yes"),
        (SamplingParams, "seed", -1),
        (SamplingParams, "seed", 1 << 63),
        (SamplingParams, "logprobs", -1),
        (SamplingParams, "repetition_penalty", 0.0),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(
    config_class: type[Any], field: str, value: object
) -> None:
    with pytest.raises(ConfigError, match=rf"^\[{config_class.__name__}\] {field} .*allowed: "):
        config_class(**{field: value})


def test_one_token_and_the_whole_prompt_are_told_apart() -> None:
    assert repr(KVConfig(device_tokens=1).device_tokens) == "1"
    assert repr(KVConfig(device_tokens=1.0).device_tokens) == "1.0"


def test_a_share_of_the_prompt_on_the_device_is_never_fewer_than_256_tokens() -> None:
    for device_tokens, prompt_tokens, window in (
        (0.1, 30, 256),
        (0.1, 2560, 256),
        (0.1, 2570, 257),
        (0.1, 10_000, 1000),
        (1.0, 30, 256),
        (0.0, 30, 0),
        (3, 10_000, 3),
        (0, 30, 0),
        (None, 30, None),
    ):
        assert _core.device_window(device_tokens, prompt_tokens) == window


def test_memory_nodes_may_be_left_to_the_system() -> None:
    assert CpuConfig().numa == "auto"
    assert CpuConfig(numa="off").numa == "off"


def test_numbers_of_numpy_become_numbers_of_python() -> None:
    whole: Any = np.int64(7)
    share: Any = np.float32(0.5)
    assert type(KVConfig(device_tokens=whole).device_tokens) is int
    assert type(KVConfig(device_tokens=share).device_tokens) is float
    assert type(SchedulerConfig(k=whole).k) is int
    assert type(CpuConfig(numa=whole).numa) is int
    assert type(SamplingParams(max_tokens=whole).max_tokens) is int
    assert SamplingParams(stop_token_ids=np.array([4, 5])).stop_token_ids == (4, 5)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64GiB", 64 << 30),
        ("64 gib", 64 << 30),
        ("500MB", 500_000_000),
        ("1.5k", 1500),
        ("2TiB", 2 << 40),
        ("123", 123),
        ("7B", 7),
        (99, 99),
    ],
)
def test_sizes_are_read_as_people_write_them(text: Any, size: int) -> None:
    assert KVConfig(dram=text).dram == size


def test_cxl_memory_is_a_size_or_a_word_or_nothing() -> None:
    assert KVConfig().cxl == "auto"
    assert KVConfig(cxl=0).cxl == 0
    assert KVConfig(cxl="128GiB").cxl == 128 << 30


def test_a_disk_is_a_folder_and_a_size(tmp_path: Path) -> None:
    disk = hybridgen.Disk(tmp_path, "1.5GiB")
    assert disk.to_dict() == {"path": str(tmp_path), "size": 3 << 29}
    assert disk == hybridgen.Disk(str(tmp_path), 3 << 29)
    assert KVConfig(disk=disk).disk is disk
    assert "size=1610612736" in repr(KVConfig(disk=disk))
    with pytest.raises(dataclasses.FrozenInstanceError):
        disk.size = 1  # type: ignore[misc]


def test_a_disk_without_unnamed_files_is_tried_with_one_that_a_next_start_would_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, opened = os.open, []

    def without_unnamed(path: os.PathLike[str], flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "no unnamed files")
        opened.append(Path(path).name)
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without_unnamed)
    assert hybridgen.Disk(tmp_path, "1GiB").path == str(tmp_path)
    own = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    assert len(opened) == 1
    assert re.fullmatch(rf"\.hybridgen-disk-{os.getpid()}-{own}-\d+", opened[0])
    assert not list(tmp_path.iterdir())


def test_a_disk_without_a_folder_to_write_to_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "absent", tmp_path / "file", "/proc"):
        with pytest.raises(ConfigError, match=r"\[Disk\] path is '.*': .*; allowed: a folder that"):
            hybridgen.Disk(path, "1GiB")
    for size in (0, "much", None, 1.5, True):
        with pytest.raises(ConfigError, match=r"\[Disk\] size is .*; allowed: a number of bytes"):
            hybridgen.Disk(tmp_path, size)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\[Disk\] path is 5; allowed"):
        hybridgen.Disk(5, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cxl_node": 1023},
            r"cxl_node is 1023, which is no memory node of this machine; allowed: None, or a node "
            r"with memory beside DRAM .*node 0 \(dram, ",
        ),
        ({"placement": "interleave"}, r"placement is 'interleave'; allowed: 'semantic'; there is"),
    ],
)
def test_a_tier_that_this_machine_lacks_is_refused_before_anything_is_loaded(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"\[KVConfig\] {message}"):
        LLM("/no/such/model", kv=KVConfig(**options))


def test_a_node_for_a_tier_that_is_off_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[KVConfig\] cxl_node is 0; .*cxl=0 uses no such node"):
        KVConfig(cxl=0, cxl_node=0)


def test_k_resolves_to_what_the_engine_takes() -> None:
    for k, found in (("auto", (256, 0.125)), (64, 64), (0.05, 0.05), ("all", "all")):
        options = _core.EngineOptions(k=SchedulerConfig(k=k).k)
        assert (options.k, options.to_dict()["k"]) == (found, found)


def test_sampling_is_greedy_by_default() -> None:
    assert SamplingParams().temperature == 0.0


def test_the_names_of_transformers_are_understood() -> None:
    assert SamplingParams(max_new_tokens=5).max_tokens == 5
    assert SamplingParams(do_sample=True).temperature == 1.0
    assert SamplingParams(do_sample=False).temperature == 0.0
    assert SamplingParams(do_sample=True, temperature=0.7).temperature == 0.7


@pytest.mark.parametrize(
    "contradiction",
    [
        {"max_tokens": 3, "max_new_tokens": 4},
        {"do_sample": False, "temperature": 0.7},
        {"do_sample": True, "temperature": 0.0},
    ],
)
def test_aliases_that_contradict_are_refused(contradiction: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"\[SamplingParams\]"):
        SamplingParams(**contradiction)


def test_minus_one_means_no_top_k() -> None:
    assert SamplingParams(top_k=-1).top_k == 0


def test_stop_takes_one_string_or_several() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stop == ("a", "b")
    assert SamplingParams(stop=None).stop == ()
    with pytest.raises(ConfigError, match="stop have 65537 letters; allowed: 65536 in all"):
        SamplingParams(stop=["x" * 65536, "y"])


def test_replace_checks_again() -> None:
    params = SamplingParams(max_tokens=4).replace(temperature=0.5)
    assert (params.max_tokens, params.temperature) == (4, 0.5)
    with pytest.raises(ConfigError):
        params.replace(top_p=2.0)


def test_replace_resolves_aliases_first() -> None:
    params = SamplingParams(max_tokens=100, temperature=0.7, stop="a")
    assert params.replace(max_new_tokens=5) == params.replace(max_tokens=5)
    assert params.replace(do_sample=False).temperature == 0.0
    assert params.replace(do_sample=True).temperature == 0.7
    assert SamplingParams().replace(do_sample=True).temperature == 1.0
    assert SamplingParams().replace(do_sample=True, temperature=0.3).temperature == 0.3
    assert params.replace(max_new_tokens=None, do_sample=None) == params
    with pytest.raises(ConfigError, match="max_tokens is 6 and max_new_tokens is 5"):
        params.replace(max_new_tokens=5, max_tokens=6)
    with pytest.raises(ConfigError, match="do_sample is True and temperature is 0"):
        params.replace(do_sample=True, temperature=0)
    with pytest.raises(ConfigError, match="do_sample is 'yes'"):
        params.replace(do_sample="yes")
    with pytest.raises(ConfigError, match="unknown option 'max_tokns'; did you mean 'max_tokens'"):
        params.replace(max_tokns=5)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_length", "max_tokens=..., which counts new tokens and not the prompt"),
        ("max_completion_tokens", "write max_tokens="),
        ("min_new_tokens", "write min_tokens="),
        ("stop_strings", "write stop="),
        ("num_return_sequences", "write n="),
        ("best_of", "there is no beam search"),
        ("length_penalty", "there is no beam search"),
        ("bad_words", "there is logit_bias"),
    ],
)
def test_names_of_other_libraries_are_refused_with_what_to_write(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown option {name!r}; .*{hint}"):
        SamplingParams(**{name: 1})
    with pytest.raises(ConfigError, match=f"unknown option {name!r}; .*{hint}"):
        SamplingParams().replace(**{name: 1})


def test_an_option_that_had_one_legal_value_is_unknown_and_the_others_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'pin'.*options: device_tokens, dram"):
        KVConfig(**{"pin": None})
