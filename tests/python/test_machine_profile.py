# SPDX-License-Identifier: Apache-2.0
"""Profile files: what ships, what is read and written, and what is refused by name."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hybridgen as hg
from hybridgen import ConfigError, MachineProfile
from hybridgen.machine_profile import CONFIDENCES
from hybridgen.machine_rates import field_table
from trained import ROOT

SHIPPED = MachineProfile.names()
# What the timed device, and the simulator's GPU lanes, cannot do without.
NEEDED = [
    *("gpu.tflops", "gpu.tflops_fp32", "gpu.hbm_gbs", "gpu.hbm_eff", "gpu.mem_gb"),
    *("link.h2d_gbs", "link.d2h_gbs", "link.setup_us", "overhead.launch_us", "overhead.sync_us"),
]


def content_of(name: str = "a100") -> dict[str, Any]:
    return MachineProfile.load(name).to_dict()


def changed(path: str, value: Any) -> dict[str, Any]:
    """Return the A100's content with one entry replaced."""
    content = content_of()
    *parents, last = path.split("/")
    place = content
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    return content


# ------------------------------------------------------------------------------------ what ships


def test_the_machines_of_the_paper_and_two_more_ship() -> None:
    assert SHIPPED == ["a100", "gh200", "h100-nvl", "h200", "rtx5090"]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_field_of_a_shipped_profile_says_where_it_comes_from_and_how_sure_it_is(
    name: str,
) -> None:
    profile = MachineProfile.load(name)
    assert profile.name == name
    assert profile.description
    assert profile.source.keys() == profile.confidence.keys() == profile.values().keys()
    assert all(text.strip() for text in profile.source.values())
    assert "measured" not in profile.confidence.values()  # nobody here had these machines


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_has_what_the_timed_device_needs(name: str) -> None:
    assert MachineProfile.load(name).require(NEEDED, "test").keys() == set(NEEDED)


def test_shipped_figures_are_those_of_their_sources() -> None:
    rates = {
        name: MachineProfile.load(name).require(["gpu.tflops", "gpu.hbm_gbs", "link.h2d_gbs"], "t")
        for name in SHIPPED
    }
    assert {name: tuple(found.values()) for name, found in rates.items()} == {
        "a100": (172.0, 1548.0, 24.8),
        "h100-nvl": (459.0, 3150.0, 52.0),
        "rtx5090": (115.0, 1434.0, 52.0),
        "gh200": (544.0, 3200.0, 375.0),
        "h200": (630.0, 4300.0, 52.0),
    }


def test_h100_is_short_for_the_one_h100_that_ships() -> None:
    assert MachineProfile.load("h100") == MachineProfile.load("h100-nvl")


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ConfigError, match=r"a100, gh200, h100-nvl, h200, rtx5090.*'h200'\?"):
        MachineProfile.load("h20")


def test_every_field_has_a_unit_and_a_meaning() -> None:
    table = field_table()
    assert len({row["name"] for row in table}) == len(table)
    assert all(row["unit"] and row["meaning"].endswith(".") for row in table)


# ------------------------------------------------------------------------------- read and written


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_saved_is_what_is_loaded(name: str, tmp_path: Path) -> None:
    profile = MachineProfile.load(name)
    profile.save(tmp_path / "copy.json")
    again = MachineProfile.load(tmp_path / "copy.json")
    assert again == profile
    assert again.fingerprint == profile.fingerprint
    assert hash(again) == hash(profile)
    for other in (pickle.loads(pickle.dumps(profile)), copy.deepcopy(profile)):
        assert other == profile


def test_a_path_with_a_slash_is_never_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    MachineProfile.load("a100").save("h200")
    assert MachineProfile.load("h200").name == "h200"
    assert MachineProfile.load("./h200").name == "a100"
    assert MachineProfile.load(Path("h200")).name == "a100"


def test_one_field_is_replaced_and_says_where_it_now_comes_from() -> None:
    profile = MachineProfile.load("a100")
    half = profile.with_values(
        {"link.h2d_gbs": 12.4}, source="half", confidence="e", name="a100-half"
    )
    assert (half.name, half.link.h2d_gbs) == ("a100-half", 12.4)
    assert half.source["link.h2d_gbs"] == "half"
    assert half.confidence["link.h2d_gbs"] == "e"
    assert half.fingerprint != profile.fingerprint
    others = half.values() | {"link.h2d_gbs": profile.link.h2d_gbs}
    assert others == profile.values()


def test_a_whole_number_is_a_rate_too() -> None:
    assert MachineProfile.from_dict(changed("gpu/tflops", 100)).gpu.tflops == 100.0


def test_what_lacks_a_field_that_is_needed_is_told_which_and_what_to_do() -> None:
    with pytest.raises(
        ConfigError, match=r"\[simulate\].*'h200' lacks cpu.dram_gbs, cxl.gbs;.*--base"
    ):
        MachineProfile.load("h200").require(["gpu.tflops", "cpu.dram_gbs", "cxl.gbs"], "simulate")


# ------------------------------------------------------------------------------------- refusals

REFUSED: list[tuple[str, Any, str]] = [
    ("format", 2, "format is 2; allowed: 1"),
    ("format", True, "format is True; allowed: 1"),
    ("name", "", "name is ''"),
    ("name", 7, "name is 7"),
    ("name", "two\nlines", "name is 'two"),
    ("gpus", {}, "the profile has the unknown field 'gpus'; did you mean 'gpu'"),
    ("gpu", 5, "gpu is 5; allowed: an object of names"),
    ("gpu", None, "gpu is None"),
    ("gpu/tflop", 1.0, "gpu has the unknown field 'tflop'; did you mean 'tflops'"),
    ("gpu/tflops", None, "gpu.tflops is null"),
    ("gpu/tflops", "fast", "gpu.tflops is 'fast'; allowed: a number in"),
    ("gpu/tflops", True, "gpu.tflops is True"),
    ("gpu/tflops", 0, "gpu.tflops is 0; allowed: a number in"),
    ("gpu/tflops", -1.0, "gpu.tflops is -1.0"),
    ("gpu/tflops", math.nan, "gpu.tflops is nan"),
    ("gpu/tflops", math.inf, "gpu.tflops is inf"),
    ("gpu/tflops", 10**400, "gpu.tflops is an integer of"),
    ("gpu/tflops", [172.0], r"gpu.tflops is \[172.0\]"),
    ("gpu/tflops", {"value": 172.0}, "gpu.tflops is {"),
    ("gpu/hbm_eff", [], r"gpu.hbm_eff is \[\]; allowed: 1 to 64 pairs"),
    ("gpu/hbm_eff", 1.0, "gpu.hbm_eff is 1.0"),
    ("gpu/hbm_eff", [[1.0]], "gpu.hbm_eff is"),
    ("gpu/hbm_eff", [[1.0, 0.5, 1.0]], "gpu.hbm_eff is"),
    ("gpu/hbm_eff", [[10.0, 0.5], [1.0, 1.0]], "gpu.hbm_eff is.*ascending"),
    ("gpu/hbm_eff", [[1.0, 0.1], [5.0, 1.0]], "gpu.hbm_eff is.*no larger one takes less time"),
    ("gpu/hbm_eff", [[1.0, 1.5]], r"gpu.hbm_eff is 1.5; allowed: a number in \[1e-09, 1\]"),
    ("gpu/hbm_eff", [[n + 1.0, 1.0] for n in range(65)], "gpu.hbm_eff is"),
    ("link/duplex_factor", 1.01, "link.duplex_factor is 1.01"),
    ("overhead/sync_us", -0.1, "overhead.sync_us is -0.1"),
    ("overhead/sync_per_sublayer", 1, "overhead.sync_per_sublayer is 1; allowed: true, false"),
    ("source/gpu.tflop", "x", "source has the unknown field 'gpu.tflop'"),
    ("source/cxl.gbs", "x", "source has the unknown field 'cxl.gbs'"),  # the A100's has none
    ("source/gpu.tflops", 3, "source of gpu.tflops is 3"),
    ("confidence/gpu.tflops", "sure", "confidence of gpu.tflops is 'sure'; allowed: s, d, g, e"),
]


@pytest.mark.parametrize(("path", "value", "words"), REFUSED)
def test_what_is_not_allowed_is_refused_by_its_name(path: str, value: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"\[machine profile\] {words}"):
        MachineProfile.from_dict(changed(path, value))


@pytest.mark.parametrize("missing", ["name", "format"])
def test_a_profile_says_its_name_and_format(missing: str) -> None:
    content = content_of()
    del content[missing]
    with pytest.raises(ConfigError, match=missing):
        MachineProfile.from_dict(content)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "Expecting value"),
        (b"[" * 100_000, "recursion|nested|Expecting"),
        (b"\xff\xfe", "utf-8"),
        (b'{"format": 1, "format": 1}', "'format' twice"),
        (b'{"format": 1, "name": "x", "gpu": {"tflops": 1, "tflops": 2}}', "'tflops' twice"),
        (b'{"format": 1, "name": "x", "gpu": {"tflops": NaN}}', "gpu.tflops is nan"),
        (b'{"format": 1, "name": "x", "gpu": {"tflops": ' + b"9" * 5000 + b"}}", "digits"),
        (b"[]", "the profile is \\[\\]"),
        (b" " * ((1 << 20) + 1), "more than 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_profile_is_named_with_the_way_out(
    text: bytes, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "broken.json"
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=words) as caught:
        MachineProfile.load(file)
    assert "broken.json" in str(caught.value)
    assert "python -m hybridgen profile" in str(caught.value)


def test_a_place_without_a_readable_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")  # would never end
    for place in (tmp_path, tmp_path / "absent.json", tmp_path / "pipe.json", "a\0b.json", b"x", 3):
        with pytest.raises(ConfigError, match=r"\[machine profile\]"):
            MachineProfile.load(place)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------- fuzzing

DRAWS = 20_000 if os.environ.get("HYBRIDGEN_LONG") == "1" else 2_000
ODD: tuple[Any, ...] = (
    *(None, True, 0, 1, -1, 2**63, 10**400, 0.5, -0.0, 1e308, 5e-324, math.nan, math.inf),
    *("", "a100", "\ud800", "\0", "x" * 5000, "measured", [], [[]], [1], [[1, 1]], [[1, 0.5], [2]]),
    *({}, {"": 1}, {"tflops": 1}, {"gpu": {"gpu": {}}}, [[[[[[1.0]]]]]]),
)


def places(content: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of nested dicts and lists."""
    found: list[tuple[Any, Any]] = []
    if isinstance(content, dict | list):
        keys = content.keys() if isinstance(content, dict) else range(len(content))
        for key in list(keys):
            found += [(content, key), *places(content[key])]
    return found


def mutated(draw: int) -> Any:
    """Return a shipped profile with one to three mutations."""
    rng = random.Random(draw)
    content: Any = content_of(rng.choice(SHIPPED))
    mutations: list[Callable[[Any, Any], None]] = [
        lambda place, key: place.__delitem__(key),
        lambda place, key: place.__setitem__(key, copy.deepcopy(rng.choice(ODD))),
        lambda place, key: place.__setitem__(key, [place[key]]),
        lambda place, key: place.__setitem__(key, copy.deepcopy(content)),
        lambda place, key: (
            place.__setitem__(f"{key}x", place[key])
            if isinstance(place, dict)
            else place.append(rng.choice(ODD))
        ),
        lambda place, key: place.__setitem__(
            key,
            place[key] * rng.choice([-1, 0, 1e-12, 0.5, 2, 1e300])
            if type(place[key]) in (int, float)
            else place[key],
        ),
    ]
    for _ in range(rng.randint(1, 3)):
        there = places(content)
        if there:
            rng.choice(mutations)(*rng.choice(there))
    return content


def test_a_damaged_profile_is_refused_in_our_words_or_is_whole() -> None:
    refusals = []
    for draw in range(DRAWS):
        content = mutated(draw)
        try:
            profile = MachineProfile.from_dict(content)
        except ConfigError as error:
            refusals.append(str(error))
            continue
        text = json.dumps(profile.to_dict(), allow_nan=False)
        assert MachineProfile.from_dict(json.loads(text)) == profile, draw
        numbers = [value for value in profile.values().values() if isinstance(value, float)]
        assert all(math.isfinite(number) and number >= 0 for number in numbers), draw
        assert set(profile.confidence.values()) <= set(CONFIDENCES), draw
    assert DRAWS // 4 < len(refusals) < DRAWS  # both happen
    assert all(words.startswith("[machine profile]") for words in refusals)


def test_it_is_one_of_the_packages_names() -> None:
    assert "MachineProfile" in hg.__all__


def test_the_document_describes_every_field_in_the_files_order() -> None:
    document = (ROOT / "docs/profiles.md").read_text(encoding="utf-8")
    rows = [f"| `{row['name']}` | {row['unit']} | {row['meaning']} |" for row in field_table()]
    assert "\n".join(rows) in document
    for name in SHIPPED:
        assert f"| `{name}` | {MachineProfile.load(name).description} |" in document
