"""The table of backends, the options to start or reach them, and which of these only cost speed or memory.

The others are part of a run's id (prunus.settings.serving).
"""

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar
from urllib.parse import urlsplit

from prunus.errors import PrunusError
from prunus.plain_data import parse_json
from prunus.settings import ADVANCED, ENGINE, Conflict, about, check_settings, described, setting
from prunus.settings.request import OF_LLAMA_CPP, OF_SERVERS, OF_TRANSFORMERS, check_taken, checked

GGUF = "{gguf}"  # stands in a command for the model's GGUF file
FLOAT32_PARAMETERS = 1_000_000_000  # up to this size a model runs in float32 on a CPU
LONGEST_ADDRESS = 2000  # characters
EXAMPLE = '{"tensor_parallel_size": 2}'
REQUEST_EXAMPLE = '{"repetition_penalty": 1.05}'

NO_NATIVE = Conflict("control", "native", "control native needs the backend openai, whose engine keeps the budget")
OWN_BATCHES = Conflict("aa_control", True, "aa_control needs other batches, and {backend} makes its own: leave it out")


@dataclass(frozen=True)
class BackendEntry:
    """The facts about a backend that are known without importing it.

    load: "module:function" that takes a model folder, a device, the number of ids that the tokenizer knows and
    EngineOptions, and returns a prunus.evaluation.engine.Backend. batch_size: chains decoded and stored together
    unless the plan sets it; engines with continuous batching need many requests at once.
    settings: the EngineOptions that it uses. needs: those that it requires, with the advice of the error message.
    loads_itself: whether another program reads the weights, so that any type of model will do. streams: whether it is
    a prunus.evaluation.engine.Streaming, which makes its own batches. chats: as load, of the server's chat completions,
    for control native; empty without any. request: the fields of requests that it takes. conflicts: what an EvalPlan
    cannot have together with it; without chats, control native.
    """

    load: str
    batch_size: int
    settings: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    loads_itself: bool = False
    streams: bool = False
    chats: str = ""
    request: frozenset[str] = frozenset()
    conflicts: tuple[Conflict, ...] = (NO_NATIVE,)


# A new backend is one file and one line here.
BACKENDS: dict[str, BackendEntry] = {
    "hf": BackendEntry(
        "prunus.evaluation.backends.hf:HFBackend.load", 64, ("serving", "request", "exact"), request=OF_TRANSFORMERS
    ),
    "vllm": BackendEntry(
        "prunus.evaluation.backends.vllm:VLLMBackend.load",
        512,
        ("args", "serving", "request", "environment", "exact"),
        loads_itself=True,
        streams=True,
        request=OF_SERVERS,
        conflicts=(NO_NATIVE, OWN_BATCHES),
    ),
    "openai": BackendEntry(
        "prunus.evaluation.backends.openai:OpenAIBackend.load",
        512,
        (
            *("url", "serve", "served_model", "tokenizer", "concurrency", "timeout"),
            *("serving", "request", "environment", "exact"),
        ),
        needs={"url": "the server's address: --url http://localhost:8000/v1"},
        loads_itself=True,
        streams=True,
        chats="prunus.evaluation.backends.chat:ChatServer.load",
        request=OF_SERVERS | OF_LLAMA_CPP,
        conflicts=(OWN_BATCHES,),
    ),
}


# Settings that only cost speed or memory, of the engine's arguments and of the command that starts its server, without
# leading dashes and with underscores, by program. All others are part of a run's id. docs/runs.md lists the same.
SPEED: Mapping[str, frozenset[str]] = {
    "vllm": frozenset(
        {
            "allow_credentials", "allowed_headers", "allowed_methods", "allowed_origins", "api_key", "api_server_count",
            "async_scheduling", "cpu_offload_gb", "data_parallel_address", "data_parallel_backend",
            "data_parallel_rpc_port", "data_parallel_size", "data_parallel_size_local", "data_parallel_start_rank",
            "disable_fastapi_docs", "disable_log_requests", "disable_log_stats", "distributed_executor_backend",
            "download_dir", "dp", "enable_chunked_prefill", "enable_log_requests", "enable_prefix_caching",
            "gpu_memory_utilization", "host", "kv_cache_memory_bytes", "log_level", "master_addr", "master_port",
            "max_log_len", "max_model_len", "max_num_batched_tokens", "max_num_seqs", "max_parallel_loading_workers",
            "nnodes", "node_rank", "num_gpu_blocks_override", "pipeline_parallel_size", "port", "pp", "root_path",
            "scheduling_policy", "served_model_name", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "swap_space",
            "tensor_parallel_size", "tp", "uds", "use_tqdm_on_load", "uvicorn_log_level",
        }
    ),
    "llama.cpp": frozenset(
        {
            "a", "alias", "api_key", "api_key_file", "b", "batch_size", "c", "cache_ram", "cb", "cont_batching", "cram",
            "ctx_size", "endpoint_metrics", "endpoint_props", "endpoint_slots", "gpu_layers", "host", "lm", "load_mode",
            "log_colors", "log_disable", "log_file", "log_prefix", "log_timestamps", "log_verbosity", "lv", "main_gpu",
            "metrics", "mg", "mlock", "mmap", "n_gpu_layers", "n_parallel", "name", "ngl", "no_mmap", "np", "numa",
            "offline", "parallel", "poll", "port", "prio", "props", "slots", "sm", "split_mode", "t", "tb",
            "tensor_split", "threads", "threads_batch", "threads_http", "timeout", "to", "ts", "ub", "ubatch_size", "v",
            "verbose", "warmup", "webui",
        }
    ),
    "sglang": frozenset(
        {
            "api_key", "chunked_prefill_size", "context_length", "data_parallel_size", "dist_init_addr", "dp",
            "dp_size", "enable_metrics", "host", "log_level", "log_requests", "max_prefill_tokens",
            "max_running_requests", "max_total_tokens", "mem_fraction_static", "nnodes", "node_rank", "port", "pp_size",
            "schedule_policy", "served_model_name", "tensor_parallel_size", "tp", "tp_size",
        }
    ),
}  # fmt: skip
# Those by which engines choose the factors of LongRoPE, so that they count for a model that has it.
OF_LENGTH: Mapping[str, frozenset[str]] = {
    "vllm": frozenset({"max_model_len"}),
    "llama.cpp": frozenset({"c", "ctx_size", "n_parallel", "np", "parallel"}),
    "sglang": frozenset({"context_length"}),
}
MODEL_FLAGS = frozenset({"m", "model", "model_path"})  # count for nothing where they name the model itself

# Environment variables that change what is computed, by who reads them. They are part of a run's id where they are set.
_TORCH = {"NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"}
ENVIRONMENT: Mapping[str, frozenset[str]] = {
    "hf": frozenset(_TORCH),
    "vllm": frozenset(
        {
            *_TORCH, "VLLM_ATTENTION_BACKEND", "VLLM_BATCH_INVARIANT", "VLLM_CPU_INT4_W4A8", "VLLM_CPU_SGL_KERNEL",
            "VLLM_FLASH_ATTN_VERSION", "VLLM_MARLIN_USE_ATOMIC_ADD", "VLLM_MLA_DISABLE", "VLLM_USE_DEEP_GEMM",
            "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_USE_TRITON_AWQ", "VLLM_USE_V2_MODEL_RUNNER",
        }
    ),
    "llama.cpp": frozenset(
        {"GGML_CUDA_FORCE_CUBLAS", "GGML_CUDA_FORCE_MMQ", "GGML_VK_DISABLE_F16", "LLAMA_ATTN_ROT_DISABLE"}
    ),
    "sglang": frozenset({*_TORCH, "SGLANG_ENABLE_DETERMINISTIC_INFERENCE", "SGL_ENABLE_JIT_DEEPGEMM"}),
}  # fmt: skip


# Engines for which `find` has a ladder by bytes, and the backends that evaluate its rungs in them.
SMALLEST: Mapping[str, str] = {"vllm": "vllm", "llama.cpp": "openai"}


CONTEXT, SLOTS = "{context}", "{slots}"  # stand in a command of `choose` for tokens of all chains at once, their number
LLAMA_SERVER = "llama-server"  # of llama.cpp
SERVES_GGUF = f"{LLAMA_SERVER} -m {GGUF} --alias {{name}} --port {{port}}"


def users_of(setting: str) -> str:
    """The names of the backends that use a setting, separated by commas."""
    return ", ".join(name for name, entry in BACKENDS.items() if setting in entry.settings)


@dataclass(frozen=True)
class EngineOptions:
    """The options to start or reach a backend, each with the backends that use it."""

    GROUP: ClassVar[str] = ADVANCED

    args: Mapping[str, Any] = field(default_factory=dict, metadata=about("arguments of vllm.LLM.", metavar="JSON"))
    url: str | None = setting(None, "the server's address, such as http://localhost:8000/v1.", group=ENGINE)
    serve: str | None = setting(
        None,
        "command that starts a server, such as 'vllm serve {model} --port {port}'; choose has {context} and {slots}.",
        conflicts=(
            Conflict(
                "url", None, "url and serve exclude each other: a server that is started has an address of its own"
            ),
            Conflict(
                "tokenizer",
                None,
                "tokenizer and serve exclude each other: a server is started with a model's folder",
            ),
        ),
    )
    served_model: str | None = setting(None, "the server's name for MODEL, if it differs.", metavar="NAME")
    tokenizer: str | None = setting(
        None, "the served model's tokenizer; MODEL is then only its name.", metavar="FOLDER|HUB-ID"
    )
    concurrency: int | None = setting(None, "most requests at once; the default follows the server.", at_least=1)
    timeout: float = setting(1800.0, "seconds for the whole reply.", above=0, note="it is in seconds")
    serving: str | None = setting(
        None,
        "name of settings that change samples and that a server does not tell; part of the run's id.",
        metavar="NAME",
        group=ENGINE,
    )
    request: Mapping[str, Any] = field(
        default_factory=dict,
        metadata=about(
            f"""fields of every request, such as '{REQUEST_EXAMPLE}'; part of the run's id.""",
            metavar="JSON",
            group=ENGINE,
        ),
    )
    environment: Mapping[str, str] = field(
        default_factory=dict,
        metadata=about("environment variables of the engine or of the server that is started; part of the run's id."),
    )
    exact: bool = setting(
        False,
        "settings that only cost speed or memory, and versions, are part of the run's id, too.",
        conflicts=(
            Conflict(
                "url",
                None,
                "exact is for an engine that is started here: name what a running server does not tell by serving",
            ),
        ),
    )

    def __post_init__(self) -> None:
        check_settings(self)
        object.__setattr__(self, "request", checked(self.request))
        for name, value in self.environment.items():
            if not isinstance(value, str) or not name or "=" in name or "\0" in name + value:
                raise PrunusError(
                    f'environment takes names and texts, such as {{ {name or "NAME"} = "1" }}, not {value!r}'
                )
        if self.environment and self.url is not None:
            raise PrunusError("environment is for a server that is started: one that runs has its own")
        if self.url is not None and not is_address(self.url):
            raise PrunusError(f"'{self.url}' is not the address of a server, such as http://localhost:8000/v1")
        if self.serve is not None:
            self._check_serve(self.serve)

    def _check_serve(self, serve: str) -> None:
        try:
            words = shlex.split(serve)
        except ValueError as error:
            raise PrunusError(f"serve is not a command: {error}") from error
        for parts in (("{model}", GGUF), ("{port}",)):
            if not any(part in word for word in words for part in parts):
                raise PrunusError(f'serve lacks {parts[0]}; write "vllm serve {{model}} --port {{port}}"')

    def check(self, backend: str) -> None:
        """Raise PrunusError for a given setting that the backend does not use, or a missing one that it requires."""
        default, entry = EngineOptions(), BACKENDS[backend]
        for one in fields(EngineOptions):  # those of a started server have more
            is_set = getattr(self, one.name) != getattr(default, one.name)
            if is_set and one.name not in entry.settings:
                raise PrunusError(
                    f"{one.name.replace('_', ' ')} is for the backend {users_of(one.name)}, not for {backend}"
                )
            if not is_set and one.name in entry.needs and self.serve is None:
                raise PrunusError(f"the backend {backend} needs {entry.needs[one.name]}")
        check_taken(self.request, f"the backend {backend}", entry.request)


EngineOptions.__doc__ = described(EngineOptions, users_of)


def engine_for(smallest: str, engine: EngineOptions) -> tuple[str, EngineOptions]:
    """The backend in which rungs of a ladder by the bytes of an engine are evaluated, and its options.

    Without a command that serves GGUF files it is that of llama.cpp's own server. Raises PrunusError where that is not
    on the PATH.
    """
    if smallest != "llama.cpp" or engine.serve is not None:
        return SMALLEST[smallest], engine
    if shutil.which(LLAMA_SERVER) is None:
        raise PrunusError(
            f"{LLAMA_SERVER} of llama.cpp is not on the PATH: add the folder that has it, or --serve '{SERVES_GGUF}'"
            " with its path"
        )
    return SMALLEST[smallest], replace(engine, serve=SERVES_GGUF)


def is_address(url: str) -> bool:
    """Whether a URL has the scheme http or https, a host and, if given, a valid port, and could be of a server."""
    if len(url) > LONGEST_ADDRESS or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


def parse_args(text: str | None, what: str = "engine arguments", example: str = EXAMPLE) -> dict[str, Any]:
    """The `args` of EngineOptions, or what else is an object, from JSON; PrunusError unless it is one."""
    try:
        args = parse_json(text or "{}")
    except ValueError as error:
        raise PrunusError(f"{what} are not JSON ({error}); write '{example}'") from error
    if not isinstance(args, dict):
        raise PrunusError(f"{what} must be a JSON object, such as {example}")
    return args
