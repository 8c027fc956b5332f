# SPDX-License-Identifier: Apache-2.0
"""The profile that `hybridgen.calibrate` makes of a model: ``k_min.json`` beside its checkpoint."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ._checks import as_int, as_path
from ._files import replacing, write_whole
from .errors import ConfigError

FILE_NAME = "k_min.json"
FORMAT = 1


@dataclass(frozen=True)
class KMinProfile:
    """What profiling found.

    Parameters
    ----------
    k_min : int
        Offloaded tokens per head.
    metric : str
        "agreement" (share of greedy tokens equal to full attention's) or "exact_match" (share of
        answers that the continuation begins with).
    tolerance : float
        Loss that K_min may have, as a share of the accuracy with all tokens.
    curve : tuple of (int, float)
        K and its accuracy, ascending.
    all_tokens : float
        Accuracy with every offloaded token.
    num_prompts : int
        Size of the data set.
    device_tokens : int or float
        Tokens that stayed on the device.
    model : str
        Name of the model's folder.
    fingerprint : str
        Tells one checkpoint from another; empty without a folder.
    """

    k_min: int
    metric: str
    tolerance: float
    curve: tuple[tuple[int, float], ...]
    all_tokens: float
    num_prompts: int
    device_tokens: int | float
    model: str
    fingerprint: str

    def save(self, path: str | Path) -> None:
        """Write ``k_min.json``; if that fails, a file that was there stays as it was.

        Raises
        ------
        ConfigError, DeviceError
            If there can be no such file, or the system cannot write it.
        """
        content = {"format": FORMAT, **vars(self), "curve": [list(point) for point in self.curve]}
        write_whole(path, json.dumps(content, indent=1) + "\n", "k_min")

    @classmethod
    def load(cls, path: str | Path) -> KMinProfile:
        """Read a file that `save` wrote.

        Raises
        ------
        ConfigError
            If it cannot be read or is something else.
        """
        path = as_path("k_min", "path", path)
        way_out = (
            "make it again with `python -m hybridgen calibrate`, or pass SchedulerConfig(k=...), "
            "or k=None with k_min=..."
        )
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"[k_min] cannot read {path}: {error}; {way_out}") from error
        try:
            if content.pop("format") != FORMAT:
                raise ValueError("its format is not known")
            curve = tuple((int(k), float(accuracy)) for k, accuracy in content.pop("curve"))
            profile = cls(curve=curve, **content)
            as_int("k_min", "k_min", profile.k_min, 1)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"[k_min] {path} is not a profile of K_min: {error}; {way_out}"
            ) from error
        return profile

    def plot(self, path: str | Path) -> None:
        """Draw the curve as a png; needs matplotlib."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ConfigError(
                "[k_min] drawing needs matplotlib, which is not installed; pip install matplotlib"
            ) from error
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        ks, accuracies = zip(*self.curve, strict=True)
        axes.plot(ks, accuracies, marker="o", label="K tokens")
        axes.axhline(self.all_tokens, linestyle=":", color="grey", label="all tokens")
        axes.axvline(self.k_min, linestyle="--", color="tab:red", label=f"K_min = {self.k_min}")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("K (offloaded tokens attended to per head)")
        axes.set_ylabel(self.metric.replace("_", " "))
        axes.set_title(f"{self.model}: {self.num_prompts} prompts, measured")
        axes.legend()
        with replacing(path, "k_min") as temporary:
            figure.savefig(temporary, dpi=150, format="png")


def profile_file(path: Path) -> Path:
    """Return where the profile of a folder or GGUF file lies."""
    return (path.parent if path.is_file() else path) / FILE_NAME


def fingerprint(path: Path) -> str:
    """Return what tells one checkpoint from another: of its config and its weight files' heads."""
    digest = hashlib.sha256()
    weights = [*path.glob("*.safetensors"), *path.glob("*.bin")]
    for file in [path] if path.is_file() else sorted([path / "config.json", *weights]):
        if file.is_file():
            digest.update(f"{file.name} {file.stat().st_size}\n".encode())
            with file.open("rb") as content:
                digest.update(content.read(1 << 16))
    return digest.hexdigest()


def profiled_k_min(path: Path | None) -> int | None:
    """Return what the k_min.json beside a checkpoint says; None without one."""
    file = None if path is None else profile_file(path)
    if path is None or file is None or not file.is_file():
        return None
    profile = KMinProfile.load(file)
    if profile.fingerprint != fingerprint(path):
        raise ConfigError(
            f"[k_min] {file} was made for another checkpoint ({profile.model or 'unnamed'}); make "
            "it again with `python -m hybridgen calibrate`, or pass SchedulerConfig(k=...)"
        )
    return profile.k_min
