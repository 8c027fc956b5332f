# SPDX-License-Identifier: Apache-2.0
"""LLM decoding with most of the KV cache in host memory and hybrid attention.

Examples
--------
>>> import hybridgen as hg
>>> with hg.LLM("path/to/model", kv=hg.KVConfig(device_tokens=0.1)) as llm:  # doctest: +SKIP
...     print(llm.generate("Once upon a time")[0].text)
"""

from __future__ import annotations

# The compiled module links against torch's libraries, which only this import makes findable.
import torch as _torch

try:
    from . import _core
except ImportError as error:
    raise ImportError(
        f"hybridgen._core cannot be loaded: {error}. It is compiled for one version of torch; "
        f"installed is torch {_torch.__version__}. Rebuild it against this torch: "
        "pip install --no-build-isolation ."
    ) from error

_built_for = str(_core.build_info()["torch_version"])
if _built_for.split(".")[:2] != str(_torch.__version__).split(".")[:2]:
    raise ImportError(
        f"hybridgen._core was built for torch {_built_for}, but torch {_torch.__version__} is "
        f"installed. Install torch {_built_for}, or rebuild: pip install --no-build-isolation ."
    )

from . import methods, selectors  # noqa: E402
from .config import CpuConfig, KVConfig, QueryConfig, SchedulerConfig, WeightConfig  # noqa: E402
from .disk import Disk  # noqa: E402
from .errors import (  # noqa: E402
    CheckpointError,
    ConfigError,
    DeviceError,
    GenerationError,
    HybridGenError,
    NumericError,
    OutOfMemoryError,
    UnsupportedModelError,
)
from .info import Info, info  # noqa: E402
from .k_min import calibrate  # noqa: E402
from .k_min_profile import KMinProfile  # noqa: E402
from .llm import LLM  # noqa: E402
from .machine_profile import MachineProfile  # noqa: E402
from .model import Model  # noqa: E402
from .outputs import (  # noqa: E402
    CompletionOutput,
    RequestMetrics,
    RequestOutput,
    RunStats,
    ScoreOutput,
    StreamChunk,
)
from .paper import paper_setting  # noqa: E402
from .plan import MemoryPlan, plan  # noqa: E402
from .quantize import quantize  # noqa: E402
from .sampling import SamplingParams  # noqa: E402
from .selectors import register as register_selector  # noqa: E402

__version__ = str(_core.build_info()["version"])

__all__ = [
    "LLM",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "CpuConfig",
    "DeviceError",
    "Disk",
    "GenerationError",
    "HybridGenError",
    "Info",
    "KMinProfile",
    "KVConfig",
    "MachineProfile",
    "MemoryPlan",
    "Model",
    "NumericError",
    "OutOfMemoryError",
    "QueryConfig",
    "RequestMetrics",
    "RequestOutput",
    "RunStats",
    "SamplingParams",
    "SchedulerConfig",
    "ScoreOutput",
    "StreamChunk",
    "UnsupportedModelError",
    "WeightConfig",
    "__version__",
    "calibrate",
    "info",
    "methods",
    "paper_setting",
    "plan",
    "quantize",
    "register_selector",
    "selectors",
]
