# SPDX-License-Identifier: Apache-2.0
"""All model families that can be read. Each has a file of its own in ``family``."""

from __future__ import annotations

import warnings
from typing import Any

from ._checks import brief, did_you_mean
from .config_fields import refuse_fields, unknown_fields
from .errors import CheckpointError, UnsupportedModelError
from .family.base import Family
from .family.llama import LLAMA
from .family.mistral import MISTRAL
from .family.opt import OPT
from .family.qwen2 import QWEN2
from .family.qwen3 import QWEN3

__all__ = ["FAMILIES", "IGNORED_TENSORS", "OPT", "Family", "family_of", "read_model_config"]

FAMILIES = (OPT, LLAMA, MISTRAL, QWEN2, QWEN3)

IGNORED_TENSORS = (
    r"(.*\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)",
    r"(model\.)?decoder\.version",
)
"""Patterns of tensors that old files hold and that nothing needs: they follow from the config."""


def family_of(hf_config: dict[str, Any]) -> Family:
    """Return the family of a model: that of its ``model_type``, as in transformers.

    ``architectures`` decides in files without a ``model_type``.

    Raises
    ------
    UnsupportedModelError
        Naming the supported architectures, the nearest one, and what is odd in this one's fields;
        or a field that changes results and that the engine has no code for.
    """
    listed = hf_config.get("architectures")
    if listed is not None and not (
        isinstance(listed, list) and all(isinstance(name, str) for name in listed)
    ):
        raise CheckpointError(
            f"[config.json] architectures is {brief(listed)}; allowed: a list of strings"
        )
    model_type = hf_config.get("model_type")
    for family in FAMILIES:
        if model_type == family.model_type if model_type else family.architecture in (listed or ()):
            refuse_fields(hf_config)
            _warn_of_another_architecture(family, listed)
            return family
    supported = [family.architecture for family in FAMILIES]
    what = ", ".join(listed) if listed else ""
    of_type = f" of model_type {brief(model_type)}" if model_type else ""
    raise UnsupportedModelError(
        f"[config.json] architecture is {what or 'missing'}{of_type}; allowed: "
        f"{', '.join(f'{f.architecture} ({f.model_type})' for f in FAMILIES)}"
        f"{unknown_fields(hf_config)}"
        f"{did_you_mean(listed[0] if listed else model_type, supported)}"
    )


def _warn_of_another_architecture(family: Family, listed: list[str] | None) -> None:
    if listed and not any(name.lower().startswith(family.model_type) for name in listed):
        warnings.warn(
            f"[config.json] architectures is {brief(listed)} with model_type "
            f"{family.model_type!r}; model_type decides, as in transformers: it is read as "
            f"{family.architecture}",
            stacklevel=2,
        )


def read_model_config(hf_config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of ``_core.ModelConfig`` for a parsed config.json.

    Raises
    ------
    UnsupportedModelError
        If the engine has no code for something the model needs.
    CheckpointError
        If a field is missing or malformed.
    """
    return family_of(hf_config).read(hf_config)
