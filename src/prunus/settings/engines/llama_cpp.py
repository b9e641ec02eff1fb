"""llama.cpp, whose server loads GGUF files."""

from dataclasses import dataclass

from prunus.settings.engines.facts import CONTEXT, GGUF, SLOTS, EngineFacts
from prunus.settings.request import OF_LLAMA_CPP

# The 4-bit form whose integers GPTQ chooses; without the step `quantize`, weights would be rounded to nearest.
Q4_0 = {"quantize": {"bits": 4, "group": "32"}}, {"gguf": {"type": "q4_0"}}


@dataclass(frozen=True, kw_only=True)
class LlamaCpp(EngineFacts):
    """The facts of llama.cpp, whose server finds the markers in the chat template."""

    def closing_options(self, start: str, stop: str, closing: str) -> tuple[str, ...]:
        """As EngineFacts says: the closing's text before the marker, since the server writes the marker itself."""
        message = closing.partition(stop)[0]
        return ("--reasoning-budget-message", message) if message else ()


LLAMA_CPP = LlamaCpp(
    name="llama.cpp",
    starts=(("llama-server",), ("python", "llama_cpp_server.py")),
    owner="llamacpp",
    version_at=("/props", "build_info"),
    request=OF_LLAMA_CPP,
    budget=("thinking_budget_tokens",),
    for_budget="a chat template that has markers of thinking",
    parsers={"</think>": "", "[/THINK]": "", "<channel|>": "", "</seed:think>": ""},
    takes_closing=True,
    speed=frozenset(
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
    of_length=frozenset({"c", "ctx_size", "n_parallel", "np", "parallel"}),
    variables=frozenset(
        {"GGML_CUDA_FORCE_CUBLAS", "GGML_CUDA_FORCE_MMQ", "GGML_VK_DISABLE_F16", "LLAMA_ATTN_ROT_DISABLE"}
    ),
    prefix="LLAMA_ARG_",
    gguf=True,
    forms=(*(({"gguf": {"type": kind}},) for kind in ("q8_0", "q6_k", "q5_k_m", "q4_k_m", "iq4_xs")), Q4_0),
    ladder=(*(({"gguf": {"type": kind}},) for kind in ("q8_0", "q6_k", "q5_k_m", "q4_k_m")), Q4_0),
    cache="f16",
    states="f32",
    cache_options=(("ctk", "cache_type_k"), ("ctv", "cache_type_v")),
    block=256,
    serve=f"llama-server -m {GGUF} --alias {{name}} --port {{port}}",
    room=f"-c {CONTEXT} -np {SLOTS} -cram 0",
)  # fmt: skip
