# SPDX-License-Identifier: Apache-2.0
"""A model that is loaded: weights and tokenizer, for one engine or several."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from . import _core
from ._checks import MAX_INT64, as_bool, as_int, brief, checked_keywords, is_auto, one_of
from ._lifetime import Closable, Guard, guarded
from .checkpoint import LOAD_FORMATS, LoadedModel, load_model
from .codec import Codec
from .config import WeightConfig
from .devices import resolve_device
from .errors import ConfigError, own_errors
from .machine_profile import MachineProfile
from .model_config import read_eos_ids
from .prompts import PromptReader
from .tokenizer import checked_codec, load_codec


class Model(Closable):
    """Weights on their device and the tokenizer: what several engines can share.

    ``LLM(model, ...)`` makes an engine of it. Every Model and every LLM is closed for itself, and
    the weights go back to the system with the last.

    Parameters
    ----------
    model : str, Path or dict
        A local folder, a GGUF file, a hub id, or with ``load_format="dummy"`` the content of a
        config.json.
    tokenizer : str, Path or object, optional
        A folder, a GGUF file, a hub id, or an object with encode and decode as in transformers. By
        default the model's own; without any, token ids still work.
    revision : str, optional
        Branch, tag or commit of a hub id.
    dtype : str
        "auto" keeps the checkpoint's; else "float32", "bfloat16" or "float16".
    device : str
        "auto", "cpu" or "cuda:0"; "emulated", a device that is none, for tests and new methods; or
        "emulated:h100-nvl", "emulated:path/profile.json": one that has the times of a profile and
        no results (docs/cuda.md). "auto" is never emulated.
    load_format : str
        "auto", "safetensors", "bin", "gguf" or "dummy".
    gguf_file : str, optional
        Which GGUF file of a folder or hub id is the model, such as "model-Q4_K_M.gguf"; of a split
        one any part. Its configuration and tokenizer are those of the file.
    seed : int
        Of dummy weights.
    weights : WeightConfig, optional
        In which format weights are held; by default that of the checkpoint.

    Raises
    ------
    ConfigError
        For an option that is not allowed; checked before anything is loaded.
    UnsupportedModelError, CheckpointError
        If the model cannot be run or read.
    OutOfMemoryError
        If it does not fit.

    Examples
    --------
    >>> with Model("path/to/model") as model:  # doctest: +SKIP
    ...     texts = [LLM(model, method=m).generate("Once")[0].text for m in ("full", "h2o")]
    """

    tokenizer: Any
    """As it was given or loaded; None without one."""
    path: Path | None
    """The folder; None if it was made from a dict."""
    config: dict[str, Any]
    """Its sizes and kinds, as the engine sees them."""
    generation_config: dict[str, Any]
    """Content of generation_config.json; see `SamplingParams.from_generation_config`."""
    eos_token_ids: tuple[int, ...]
    """The ending tokens of checkpoint and tokenizer."""
    dtype: str
    device: str
    weight_config: WeightConfig
    """In which format weights are held that the checkpoint has no codes of."""
    weight_formats: dict[str, Any]
    """Of each matrix that the checkpoint has codes of: how it is held."""

    @guarded
    @checked_keywords("Model")
    def __init__(
        self,
        model: str | Path | dict[str, Any],
        *,
        tokenizer: Any = None,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        load_format: str = "auto",
        gguf_file: str | None = None,
        seed: int = 0,
        weights: WeightConfig | None = None,
    ) -> None:
        loading = {
            "dtype": dtype,
            "device": device,
            "load_format": load_format,
            "gguf_file": gguf_file,
            "seed": seed,
            "weights": weights,
        }
        self._load("Model", model, tokenizer, revision, loading)

    @classmethod
    def _opened_by(
        cls, operation: str, model: Any, tokenizer: Any, revision: str | None, **loading: Any
    ) -> Model:
        """Do as the constructor, for one whom messages then name."""
        made = cls.__new__(cls)
        made._load(operation, model, tokenizer, revision, loading)
        return made

    def _load(
        self,
        operation: str,
        model: Any,
        tokenizer: Any,
        revision: str | None,
        loading: dict[str, Any],
    ) -> None:
        as_int(operation, "seed", loading["seed"], 0, MAX_INT64)
        one_of(operation, "load_format", loading["load_format"], LOAD_FORMATS)
        codec = None if _is_place(tokenizer) else checked_codec(tokenizer, operation)
        _refuse_idle_revision(operation, revision, model, tokenizer)
        loading["weights"] = weight_config(operation, loading["weights"])
        device = resolve_device(operation, loading["device"])
        loading["device"] = device.engine_name
        with own_errors("load_model"):
            loaded = load_model(
                model, revision=revision, is_timed=device.profile is not None, **loading
            )
        self._device = device
        self._hold(loaded, codec or _load_codec(operation, tokenizer, revision, loaded.path))

    def _hold(self, loaded: LoadedModel, codec: Codec | None) -> None:
        self._guard = Guard("Model")
        self._loaded = replace(loaded)  # closing one leaves the others theirs
        self.codec = codec
        """Of the tokenizer; None without one."""
        self.path = loaded.path
        self.config = loaded.config
        self.generation_config = loaded.generation_config
        self.eos_token_ids = loaded.eos_token_ids
        self.dtype, self.device = loaded.model.dtype, self._device.name
        self.weight_config, self.weight_formats = loaded.weights, loaded.formats
        self.tokenizer = None if codec is None else codec.tokenizer
        self.valid_vocab = 0
        """Token ids from here on are padding of the embedding; 0 for none."""
        if codec is not None:
            ids = [*loaded.eos_token_ids, codec.special_id("eos_token_id")]
            self.eos_token_ids = read_eos_ids({"eos_token_id": ids})
            size = codec.vocabulary_size
            self.valid_vocab = size if 0 < size < loaded.config["vocab_size"] else 0

    def _share(
        self, *, tokenizer: Any = None, revision: str | None = None, **loading: object
    ) -> Model:
        """Return another holder of the same weights, which is closed for itself.

        Parameters
        ----------
        tokenizer, revision
            As for `Model`; None shares the tokenizer too.
        **loading
            Options that only loading reads: anything but "auto" is refused.
        """
        for name, value in loading.items():
            if value is not None and not is_auto(value):
                raise ConfigError(
                    f"[LLM] {name} is {brief(value)} for a model that is loaded already; allowed: "
                    "'auto' (weights, gguf_file: None); pass its path to load it again"
                )
        _refuse_idle_revision("LLM", revision, tokenizer)
        weights = self.weights  # refuses one that is closed
        codec = self.codec
        if tokenizer is not None:
            is_place = _is_place(tokenizer)
            codec = (
                _load_codec("LLM", tokenizer, revision, None)
                if is_place
                else checked_codec(tokenizer)
            )
        other = type(self).__new__(type(self))
        vars(other).update(vars(self))  # a subclass may have more than this class knows
        other._hold(replace(self._loaded, model=weights), codec)
        return other

    # ---------------------------------------------------------------------------------------- text

    def get_tokenizer(self) -> Any:
        """Return the tokenizer; ConfigError without one."""
        return self._reader("get_tokenizer").require_codec().tokenizer

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text as `LLM.generate` reads it."""
        return self._reader("encode").read_one({"prompt": text})[1]

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of token ids."""
        reader = self._reader("decode")
        skip = as_bool("decode", "skip_special_tokens", skip_special_tokens)
        return reader.require_codec().decode(reader.read_ids(token_ids), skip_special_tokens=skip)

    def _require_results(self, operation: str) -> None:
        """Refuse what needs the model's own results where there are only times."""
        if self.machine_profile is not None:
            raise ConfigError(
                f"[{operation}] device is {self.device!r}, where nothing is computed: its tokens "
                "and log-probabilities mean nothing; allowed: cpu, cuda:0, or 'emulated' without "
                "a profile"
            )

    def _reader(self, operation: str) -> PromptReader:
        """Return what reads prompts for this model; messages begin with the operation."""
        return PromptReader(self.codec, self.config["vocab_size"] - 1, operation)

    # ------------------------------------------------------------------------------------ lifetime

    @property
    def emulated(self) -> str | None:
        """What reports say of an emulated device: whose times they are; None on a real one."""
        return self._device.emulated

    @property
    def engine_device(self) -> str:
        """The engine's name of the device: "emulated:1" where ``device`` names a profile."""
        return self._device.engine_name

    @property
    def machine_profile(self) -> MachineProfile | None:
        """Whose times an emulated device has: nothing is computed there, so text is withheld."""
        return self._device.profile

    @property
    def weights(self) -> Any:
        """The engine's side of it; ConfigError once it is closed, and in a forked process."""
        self._guard.refuse_if_forked()
        if self._loaded.model is None:
            raise ConfigError(
                "[Model] the model is closed; allowed: a Model that is open; make a new one, or "
                "close this one later"
            )
        return self._loaded.model

    @guarded
    def close(self) -> None:
        """Let the weights go; calling it again does nothing.

        Engines that were made of it keep theirs. What was read from the checkpoint (``path``,
        ``config``, ``tokenizer`` and so on) stays.
        """
        if self._loaded.model is None:
            return
        self._loaded.model = None
        _core.release_free_memory()
        if self.device != "cpu":
            _core.release_device_memory(self.engine_device)

    def __enter__(self) -> Model:
        _ = self.weights  # refuses one that is closed
        return self

    def __reduce_ex__(self, _protocol: object) -> Any:
        raise ConfigError(
            "[Model] a model owns memory of this process and cannot be copied or pickled; "
            "LLM(model) makes an engine on the same weights; in another process load it from the "
            "same path"
        )

    def __repr__(self) -> str:
        return f"Model({self._describe()}, {self.dtype} on {self.emulated or self.device})"

    def _describe(self) -> str:
        """Return its kind and sizes in a few words."""
        config = self.config
        return (
            f"{config['architecture']}, {config['num_layers']} layers of "
            f"{config['hidden_size']}, {config['num_heads']} heads on {config['num_kv_heads']} "
            "key/value heads"
        )


def weight_config(operation: str, weights: object) -> WeightConfig:
    """Return how weights are to be held, the default for None; ConfigError for anything else."""
    if weights is None:
        return WeightConfig()
    if not isinstance(weights, WeightConfig):
        raise ConfigError(
            f"[{operation}] weights is {brief(weights)}; allowed: a WeightConfig, for example "
            "weights=WeightConfig(format='int8')"
        )
    return weights


def _is_place(value: object) -> bool:
    """Say whether it is, or by being None leaves open, where something lies."""
    return value is None or isinstance(value, str | Path)


def _refuse_idle_revision(operation: str, revision: str | None, *sources: object) -> None:
    if revision is not None and not any(isinstance(source, str | Path) for source in sources):
        raise ConfigError(
            f"[{operation}] revision is {brief(revision)} and nothing is read from the hub; "
            "allowed: None; pass the hub id that it belongs to"
        )


def _load_codec(
    operation: str, tokenizer: str | Path | None, revision: str | None, folder: Path | None
) -> Codec | None:
    """Return the codec of the named tokenizer, or of the one in the model's folder if any."""
    if tokenizer is None:
        return None if folder is None else load_codec(folder)
    codec = load_codec(tokenizer, revision)
    if codec is None:
        raise ConfigError(
            f"[{operation}] tokenizer is {brief(str(tokenizer), 300)}, where there is none; "
            "allowed: a folder or hub id with one, an object with encode and decode, or None for "
            "the model's own"
        )
    return codec
