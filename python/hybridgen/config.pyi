# SPDX-License-Identifier: Apache-2.0
# Made by scripts/build_stubs.sh from the tables of options in src/; not to be edited.
from dataclasses import dataclass
from typing import ClassVar

from ._options import MethodOptions as MethodOptions
from ._options import Options as Options
from ._options import SteeringOptions
from .disk import Disk

METHOD_OPTIONS: tuple[type[MethodOptions], ...]

@dataclass(frozen=True, kw_only=True)
class KVConfig(Options):
    """Where the keys and values of past tokens are kept.

    Parameters
    ----------
    device_tokens : str | int | float, default 'auto'
        The newest tokens of a request that stay on the device: a number of tokens, a share of
        its prompt from 0.0 to 1.0, or as many as fit. ``1`` is one token, ``1.0`` the whole
        prompt. A share above 0.0 never means fewer than 256 tokens. What fits follows from the
        prompt, the new tokens and the device's whole budget; while others hold it, a request
        waits; allowed: 'auto', an int in [0, 2147483647] (tokens), or a float in [0.0, 1.0]
        (share of the prompt).
    dram : int | str, default 'auto'
        Host memory for offloaded tokens at most: bytes, or text such as ``"64GiB"``; allowed:
        'auto' or a number of bytes from 1 to 1 EiB, or text such as '64GiB' or '500MB'.
    cxl : int | str, default 'auto'
        Memory for offloaded tokens that is slower than the CPUs' own, at most: of a CXL
        expander, or of another socket. "auto": what `hybridgen.info()` calls so, if there is
        any; allowed: 'auto', 0 (none) or a number of bytes from 1 to 1 EiB, or text such as
        '64GiB' or '500MB'.
    cxl_node : int | None, default None
        The memory node that ``cxl`` lies on, from ``numa_nodes`` in ``hybridgen.info()``; None:
        all that are slower; allowed: None or an integer in [0, 1023].
    disk : Disk | None, default None
        Where offloaded tokens go that no memory has room for; on a command line
        ``FOLDER:SIZE``; allowed: None or a hybridgen.Disk: a folder and a size.
    placement : str, default 'semantic'
        What lies in which tier: keys, which the CPU reads, in DRAM, and values below as soon as
        DRAM is full; page by page in both, whatever they hold; or DRAM as long as there is any;
        allowed: 'semantic', 'interleave' or 'first_touch'.
    shrink_windows : bool, default False
        Whether running requests give up tokens on the device, down to 256, so that a waiting
        one can run. Their text then depends on what runs beside them; allowed: True or False.
    keys : str, default 'full'
        How keys of offloaded tokens lie in host memory: as the model computes them, or in 8 or
        4 bits, from the moment they leave the device. Scans read these codes. Tokens on the
        device and the first four tokens stay as they are; allowed: 'full', 'int8' or 'int4'.
    values : str, default 'full'
        The same for values, which are widened as they are gathered; allowed: 'full', 'int8' or
        'int4'.
    scoring : str, default 'full'
        What a Post-QKT scan of the offloaded keys reads: the keys, or a copy of them in 8 or 4
        bits kept beside them, a half or a quarter of float16's bytes. It only proposes tokens;
        which of those count, and their logits, come from the keys themselves.
        ``selector="topk"`` only; allowed: 'full', 'int8' or 'int4'.
    candidates_per_k : float | None, default None
        Tokens that get exact logits per token that counts, with ``scoring`` "int8" or "int4".
        None: 2 and 4; allowed: None or a number in [1, 1e+06].
    """

    device_tokens: str | int | float = "auto"
    dram: int | str = "auto"
    cxl: int | str = "auto"
    cxl_node: int | None = None
    disk: Disk | None = None
    placement: str = "semantic"
    shrink_windows: bool = False
    keys: str = "full"
    values: str = "full"
    scoring: str = "full"
    candidates_per_k: float | None = None

@dataclass(frozen=True, kw_only=True)
class SchedulerConfig(SteeringOptions):
    """How many offloaded tokens a step attends to (K), and when they are chosen. By default K is
    fixed, and so large that answers stay those of full attention; the same input gives the same
    text. With ``k=None`` the feedback scheduler steers both (paper §4.3): it compares the
    host's time with the device's every few steps, lets K rise while the host keeps up, lets it
    fall to ``k_min`` otherwise, and then chooses tokens before their logits are known. So
    generated text may depend on the machine's speed. Only a steered K reads the options after
    ``strategy``.

    Parameters
    ----------
    k : int | float | str | None, default 'auto'
        Offloaded tokens attended to per head. "auto": the value in the ``k_min.json`` beside
        the checkpoint (see `calibrate`), or without one the larger of 256 and an eighth of the
        offloaded tokens. A number; a share of the offloaded tokens between 0.0 and 1.0; all of
        them. None: as many as stage times allow; allowed: 'auto', an int in [1, 2147483647]
        (tokens), a float in (0.0, 1.0) (share of the offloaded tokens), 'all', or None
        (steered).
    strategy : str, default 'post'
        Choose tokens after their logits are known (Post-QKT), or before (Pre-QKT); what a
        steered request starts with; allowed: 'post' or 'pre'.
    k_min : str | int, default 'auto'
        First and smallest K of a steered request; "auto" is the value in ``k_min.json``, or 128
        without one; allowed: 'auto' or an integer >= 1.
    k_max : int | None, default None
        Largest K of a steered request; None: all offloaded tokens; allowed: an integer >=
        k_min, or None.
    adapt_k : bool, default True
        Whether a steered request may change K; allowed: True or False.
    adapt_strategy : bool, default True
        Whether it may change the strategy; allowed: True or False.
    return_to_post : str, default 'never'
        Whether a request that chooses before may choose after again, once the scan of all keys
        is estimated to fit beside the device's work; allowed: 'never' or 'estimate'.
    grow : float, default 1.2
        Factor of one rise of K; allowed: a number in [1, 1e+06].
    shrink : float, default 0.8
        Factor of one fall of K; allowed: a number in [0, 1).
    interval : int, default 4
        Decode steps per decision; allowed: an integer >= 1.
    warmup : int, default 1
        Steps without measuring after the prompt and after each change of strategy; allowed: an
        integer >= 0.
    deadband : float, default 0.0
        Nothing changes while the host is slower than the device by less than this share;
        allowed: a number in [0, 1e+06].
    k_max_ratio : float, default 1.0
        Largest share of the offloaded tokens that K may be; ``k_min`` wins; allowed: a number
        in (0, 1].
    return_margin : float, default 0.1
        Share of the device's time that a scan must leave for a return; allowed: a number in [0,
        1).
    return_hold : int, default 3
        Decisions in a row that must estimate so; allowed: an integer >= 1.
    """

    k: int | float | str | None = "auto"
    strategy: str = "post"
    k_min: str | int = "auto"
    k_max: int | None = None
    adapt_k: bool = True
    adapt_strategy: bool = True
    return_to_post: str = "never"
    grow: float = 1.2
    shrink: float = 0.8
    interval: int = 4
    warmup: int = 1
    deadband: float = 0.0
    k_max_ratio: float = 1.0
    return_margin: float = 0.1
    return_hold: int = 3

@dataclass(frozen=True, kw_only=True)
class QueryConfig(Options):
    """Which query the host scores offloaded keys with.

    Parameters
    ----------
    mode : str, default 'rescore'
        "rescore" chooses tokens by a query guessed one layer ahead and scores them with the
        layer's own, "speculative" (the paper's) takes the guessed scores as well, "exact" waits
        for the layer's own query; allowed: 'exact', 'speculative' or 'rescore'.
    first_layer : int, default 2
        First layer whose query is guessed; the layers before it are exact. Their inputs
        resemble each other least, so 2 is the default; allowed: an integer >= 1.
    norm : str, default 'next'
        Norm applied to the input that the guess is made from: the "next" layer's (as in the
        paper) or the "current" one's (as in InfiniGen); allowed: 'next' or 'current'.
    source : str, default 'next_weights'
        "next_weights" projects the guess with the next layer's weights; "previous_query" takes
        the query of the layer before as it is; allowed: 'next_weights' or 'previous_query'.
    """

    mode: str = "rescore"
    first_layer: int = 2
    norm: str = "next"
    source: str = "next_weights"

@dataclass(frozen=True, kw_only=True)
class WeightConfig(Options):
    """How weights are held and where they lie: norms, biases and learned positions always keep
    their dtype.

    Parameters
    ----------
    format : str, default 'auto'
        How the matrices of the layers are held: as the checkpoint has them, in 8 bits with a
        scale per output channel, or in 4 bits with one per group; allowed: 'auto', 'int8' or
        'int4'.
    group : int, default 64
        Inputs that share a scale, in 4 bits; allowed: 32, 64 or 128.
    min_max : bool, default False
        In 4 bits, steps from a group's smallest weight to its largest (FlexGen's); else
        symmetric ones; allowed: True or False.
    head : str, default 'auto'
        How the output head is held. Where it is the token table too, embeddings has to say the
        same; allowed: 'auto', 'int8' or 'int4'.
    embeddings : str, default 'auto'
        How the token table is held; allowed: 'auto', 'int8' or 'int4'.
    device : int | float | str | None, default None
        How much of the layers' matrices is always on the device: a share of their bytes, bytes,
        or what fits. None: all, or nothing if host is said. What lies elsewhere comes to the
        device whenever its layer is used; allowed: None, 'auto', a share from 0.0 to 1.0, a
        number of bytes, or text such as '4GiB'.
    host : int | float | str | None, default None
        How much lies in host memory, which on a CPU device is the device; the rest lies on
        disk. None: what fits; allowed: None, 'auto', a share from 0.0 to 1.0, a number of
        bytes, or text such as '4GiB'.
    folder : str | None, default None
        Where weights are packed that are to lie on disk and that no file has as they are used;
        None: in the system's folder for temporary files; allowed: None or the path of a folder.
    direct : bool | None, default None
        Whether the disk is read past the page cache; None: if host memory cannot hold what lies
        there; allowed: None, True or False.
    shared : bool, default False
        On a CPU device, all matrices, the token table and the head too, stay where the
        checkpoint's files have them in the page cache: processes of one machine hold them once.
        Files are to have them as they are used; allowed: True or False.
    """

    format: str = "auto"
    group: int = 64
    min_max: bool = False
    head: str = "auto"
    embeddings: str = "auto"
    device: int | float | str | None = None
    host: int | float | str | None = None
    folder: str | None = None
    direct: bool | None = None
    shared: bool = False

@dataclass(frozen=True, kw_only=True)
class CpuConfig(Options):
    """Threads, memory node and instruction set of the host's part.

    Parameters
    ----------
    threads : str | int, default 'auto'
        Threads that score offloaded tokens; allowed: 'auto' or an integer in [1, 4096].
    device_threads : str | int, default 'auto'
        Threads of the device's part when the device is the CPU; allowed: 'auto' or an integer
        in [1, 4096].
    numa : str | int, default 'auto'
        Where offloaded tokens lie and which CPUs score them. "auto" divides key/value heads
        over the memory nodes of this machine, if it has several with CPUs that this process may
        use: a head's tokens lie on one node, whose CPUs score them first; `LLM.numa_parts`
        shows it. "off" leaves both to the operating system. A number is one node, with CPUs,
        from ``numa_nodes`` in ``hybridgen.info()``, for all of them; allowed: 'auto', 'off' or
        an integer in [0, 1023].
    isa : str, default 'auto'
        Instruction set; allowed: 'auto' or a name that hybridgen.info() lists under isas.
    """

    threads: str | int = "auto"
    device_threads: str | int = "auto"
    numa: str | int = "auto"
    isa: str = "auto"

@dataclass(frozen=True, kw_only=True)
class Full(MethodOptions):
    """all tokens on the device, exact attention."""

    method: ClassVar[str] = "full"

@dataclass(frozen=True, kw_only=True)
class HybridGen(MethodOptions):
    """recent tokens on the device; the host scores older keys and sends logits and values.

    Parameters
    ----------
    k : int | float | str | None, default 'auto'
        Offloaded tokens attended to per head. "auto": the value in the ``k_min.json`` beside
        the checkpoint (see `calibrate`), or without one the larger of 256 and an eighth of the
        offloaded tokens. A number; a share of the offloaded tokens between 0.0 and 1.0; all of
        them. None: as many as stage times allow; allowed: 'auto', an int in [1, 2147483647]
        (tokens), a float in (0.0, 1.0) (share of the offloaded tokens), 'all', or None
        (steered).
    mass : float | None, default None
        Instead of ``k``: every query head takes the fewest offloaded tokens whose logits have
        this share of the softmax over all offloaded ones, by the query that chooses (a guess,
        unless ``query="exact"``), and the query heads of a KV head attend to what any of them
        took. ``strategy="post"``, ``selector="topk"`` and ``scoring="full"`` only; allowed:
        None or a number in (0, 1).
    k_max : int | float | str, default 'all'
        With ``mass``: tokens that a query head takes, at most. The device has room for as many
        of every query head; allowed: an int in [1, 2147483647] (tokens), a float in (0.0, 1.0)
        (share of the offloaded tokens), or 'all'.
    strategy : str, default 'post'
        Choose tokens after their logits are known (Post-QKT), or before (Pre-QKT); what a
        steered request starts with; allowed: 'post' or 'pre'.
    query : str | QueryConfig, default 'rescore'
        "rescore" chooses tokens by a query guessed one layer ahead and scores them with the
        layer's own, "speculative" (the paper's) takes the guessed scores as well, "exact" waits
        for the layer's own query; allowed: 'exact', 'speculative' or 'rescore', or a
        QueryConfig.
    selector : str, default 'topk'
        Who chooses after the logits are known; allowed: a name in
        hybridgen.selectors.names('post').
    pre_selector : str, default 'partial_keys'
        Who chooses before; allowed: a name in hybridgen.selectors.names('pre').
    scoring : str, default 'full'
        What a Post-QKT scan of the offloaded keys reads: the keys, or a copy of them in 8 or 4
        bits kept beside them, a half or a quarter of float16's bytes. It only proposes tokens;
        which of those count, and their logits, come from the keys themselves.
        ``selector="topk"`` only; allowed: 'full', 'int8' or 'int4'.
    candidates_per_k : float | None, default None
        Tokens that get exact logits per token that counts, with ``scoring`` "int8" or "int4".
        None: 2 and 4; allowed: None or a number in [1, 1e+06].
    scheduler : SchedulerConfig | None, default None
        How a steered K (``k=None``) and the strategy change; allowed: a SchedulerConfig, or
        None.
    column_share : float, default 0.2
        With ``pre_selector="partial_keys"`` where tokens may be chosen before their logits
        (``strategy="pre"`` or ``k=None``): share of every key's dimensions that it sees;
        allowed: a number in (0, 1].
    """

    method: ClassVar[str] = "hybridgen"
    k: int | float | str | None = "auto"
    mass: float | None = None
    k_max: int | float | str = "all"
    strategy: str = "post"
    query: str | QueryConfig = "rescore"
    selector: str = "topk"
    pre_selector: str = "partial_keys"
    scoring: str = "full"
    candidates_per_k: float | None = None
    scheduler: SchedulerConfig | None = None
    column_share: float = 0.2

@dataclass(frozen=True, kw_only=True)
class FlexGen(MethodOptions):
    """keys and values stream from the host, attention on the device.

    Parameters
    ----------
    gpu_share : float, default 0.0
        Share of a prompt's tokens, the newest, that stay on the device;
        KVConfig(device_tokens=) overrides it; allowed: a number in [0, 1].
    attn_sparsity : float, default 1.0
        Share of the tokens whose values are fetched: those with the largest weights, which are
        not renormalised; allowed: a number in (0, 1].
    """

    method: ClassVar[str] = "flexgen"
    gpu_share: float = 0.0
    attn_sparsity: float = 1.0

@dataclass(frozen=True, kw_only=True)
class MoELightning(MethodOptions):
    """attention on the host, everything else on the device, in micro-batches.

    Parameters
    ----------
    micro_batches : int, default 2
        Parts of the batch that alternate between host and device; allowed: an integer >= 1.
    lookahead : int, default 2
        Micro-batches whose queries are projected ahead of the one that is finished; allowed: an
        integer >= 1.
    """

    method: ClassVar[str] = "moe_lightning"
    micro_batches: int = 2
    lookahead: int = 2

@dataclass(frozen=True, kw_only=True)
class StreamingLLM(MethodOptions):
    """attention sinks and a window of recent tokens.

    Parameters
    ----------
    sinks : int, default 4
        First tokens that are kept; allowed: an integer >= 0.
    window : int, default 1024
        Newest tokens that are kept; with KVConfig(device_tokens=N), N less the sinks; allowed:
        an integer >= 1.
    positions : str, default 'original'
        Positions in the text, in the cache ("shift": rotary models, home="device"), or clamped
        to the cache's size ("clamp": learned positions); allowed: 'original', 'shift' or
        'clamp'.
    home : str, default 'device'
        Where the kept tokens live; "host" streams them every step; allowed: 'device' or 'host'.
    """

    method: ClassVar[str] = "streaming_llm"
    sinks: int = 4
    window: int = 1024
    positions: str = "original"
    home: str = "device"

@dataclass(frozen=True, kw_only=True)
class H2O(MethodOptions):
    """heavy hitters by accumulated attention, and recent tokens.

    Parameters
    ----------
    heavy : int | float, default 0.1
        Kept tokens with the largest accumulated weights; allowed: an integer >= 0 (tokens) or a
        number in [0, 1] (share of the prompt).
    recent : int | float, default 0.1
        Newest tokens that are kept; allowed: an integer >= 1 (tokens) or a number in (0, 1]
        (share of the prompt).
    positions : str, default 'original'
        Positions in the text, or in the cache (rotary models, home="device"); allowed:
        'original' or 'shift'.
    home : str, default 'device'
        Where the kept tokens live; "host" streams them every step; allowed: 'device' or 'host'.
    """

    method: ClassVar[str] = "h2o"
    heavy: int | float = 0.1
    recent: int | float = 0.1
    positions: str = "original"
    home: str = "device"

@dataclass(frozen=True, kw_only=True)
class Keyformer(MethodOptions):
    """key tokens by accumulated Gumbel-softmax scores, and recent tokens.

    Parameters
    ----------
    kv_cache : int | float, default 0.6
        Tokens that are kept in all; allowed: an integer >= 1 (tokens) or a number in (0, 1]
        (share of the prompt).
    recent : float, default 0.3
        Share of the budget for the newest tokens; allowed: a number in (0, 1].
    tau_init : float, default 1.0
        Temperature of the prompt's scores; allowed: a number > 0.
    tau_end : float, default 2.0
        Temperature that the last new token reaches; allowed: a number > 0.
    noise : bool, default True
        Gumbel noise on the scores; allowed: True or False.
    seed : int, default 0
        Of the noise; allowed: an integer >= 0.
    home : str, default 'device'
        Where the kept tokens live; "host" streams them every step; allowed: 'device' or 'host'.
    """

    method: ClassVar[str] = "keyformer"
    kv_cache: int | float = 0.6
    recent: float = 0.3
    tau_init: float = 1.0
    tau_end: float = 2.0
    noise: bool = True
    seed: int = 0
    home: str = "device"

@dataclass(frozen=True, kw_only=True)
class InfiniGen(MethodOptions):
    """tokens prefetched by guessed logits over partial keys, exact attention over them.

    Parameters
    ----------
    alpha : float, default 4.0
        Tokens within alpha of the largest guessed logit count; allowed: a number > 0.
    column_share : float, default 0.2
        Share of every key's rotated dimensions that the guess sees; allowed: a number in (0,
        1].
    max_fetch : int | float, default 0.2
        Tokens fetched per KV head at most; allowed: an integer >= 1 (tokens) or a number in (0,
        1] (share of the offloaded tokens).
    first_layer : int, default 2
        First layer that is guessed; the layers before load every token; allowed: an integer >=
        1.
    capacity : float, default 1.0
        Share of a request's tokens that the host keeps, never less than its prompt; allowed: a
        number in (0, 1].
    policy : str, default 'counter'
        Which token leaves a full pool (capacity below 1.0); allowed: 'fifo', 'lru' or
        'counter'.
    """

    method: ClassVar[str] = "infinigen"
    alpha: float = 4.0
    column_share: float = 0.2
    max_fetch: int | float = 0.2
    first_layer: int = 2
    capacity: float = 1.0
    policy: str = "counter"

@dataclass(frozen=True, kw_only=True)
class HGCA(MethodOptions):
    """recent window on the device, salient older tokens on the host, merged outputs.

    Parameters
    ----------
    block : int, default 128
        Tokens that leave the window at once; allowed: an integer >= 1.
    blocks : int, default 2
        Blocks in the window; KVConfig(device_tokens=) overrides it; allowed: an integer >= 1.
    alpha : float, default 0.5
        Weight of the newest step in the moving average; allowed: a number in [0, 1].
    beta : float, default 0.5
        Salience threshold, in shares of the mean weight; 0 keeps every token; allowed: a number
        >= 0.
    keep_min : int, default 10
        Tokens of every leaving block that are kept at least; allowed: an integer >= 0.
    groups : int, default 4
        Groups of KV heads that keep the same number of tokens; allowed: an integer >= 1.
    """

    method: ClassVar[str] = "hgca"
    block: int = 128
    blocks: int = 2
    alpha: float = 0.5
    beta: float = 0.5
    keep_min: int = 10
    groups: int = 4
