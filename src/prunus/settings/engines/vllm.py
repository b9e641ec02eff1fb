"""vLLM, in this process (prunus.evaluation.backends.vllm) or as a server."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prunus.settings.cache_size import CacheSize
from prunus.settings.engines.facts import (
    COMPRESSED,
    TORCH_VARIABLES,
    BackendEntry,
    EngineFacts,
)
from prunus.settings.request import OF_SERVERS


@dataclass(frozen=True, kw_only=True)
class Vllm(EngineFacts):
    """The facts of vLLM. block: tokens of the largest block in which it keeps its cache."""

    def closing_options(self, start: str, stop: str, closing: str) -> tuple[str, ...]:
        """As EngineFacts says: the parser, and the texts that begin and end thinking."""
        texts = {"reasoning_start_str": start, "reasoning_end_str": closing}
        own = ("--reasoning-config", json.dumps(texts, ensure_ascii=False)) if closing else ()
        return (*super().closing_options(start, stop, closing), *own)

    def args_for(self, tokens: int, slots: int, cache: CacheSize) -> Mapping[str, int]:
        """Arguments by which it reserves the cache that the chains need, instead of all free memory."""
        return {
            "max_model_len": tokens,
            "max_num_seqs": slots,
            "kv_cache_memory_bytes": self.cache_bytes(tokens, slots, cache),
        }

    def cache_bytes(self, tokens: int, slots: int, cache: CacheSize) -> int:
        """Bytes of cache that it needs for a number of chains: whole blocks, and one more for each chain."""
        return cache.nbytes((-(-tokens // self.block) + 1) * self.block, slots)

    def script(self, name: str, serve: str | None, args: Mapping[str, Any], room: tuple[int, int, CacheSize]) -> str:
        """The command that serves a folder, as of EngineFacts."""
        needed = " ".join(flag(key, value) for key, value in self.args_for(*room).items())
        more = " ".join(flag(key, value) for key, value in sorted(args.items()))
        command = f'vllm serve "$here" --served-model-name {shlex.quote(name)} --port "$port" {needed} {more}'
        return command.rstrip()


def flag(key: str, value: object) -> str:
    """An argument of vllm.LLM as an option of `vllm serve`."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name} {shlex.quote(value if isinstance(value, str) else json.dumps(value))}"


VLLM = Vllm(
    name="vllm",
    entry=BackendEntry(
        "prunus.evaluation.backends.vllm:VLLMBackend.load",
        512,
        ("args", "serving", "request", "environment", "exact"),
        loads_itself=True,
        fills_gpu=True,
        streams=True,
        request=OF_SERVERS,
    ),
    starts=(("vllm", "serve"), ("python", "-m", "vllm.entrypoints.openai.api_server")),
    owner="vllm",
    version_at=("/version", "version"),
    budget=("thinking_token_budget",),
    for_budget="--reasoning-parser",
    parsers={"</think>": "qwen3", "[/THINK]": "mistral", "<channel|>": "gemma4", "</seed:think>": "seed_oss"},
    takes_closing=True,
    of_closing=(
        "vLLM's model runner V1 (on CPUs) takes nothing but the whole text for an end of thinking, and writes it into"
        " answers that reach the budget: use runner V2, or measure with --closing of the marker alone"
    ),
    speed=frozenset(
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
    of_length=frozenset({"max_model_len"}),
    variables=frozenset(
        {
            *TORCH_VARIABLES, "VLLM_ATTENTION_BACKEND", "VLLM_BATCH_INVARIANT", "VLLM_CPU_INT4_W4A8",
            "VLLM_CPU_SGL_KERNEL", "VLLM_FLASH_ATTN_VERSION", "VLLM_MARLIN_USE_ATOMIC_ADD", "VLLM_MLA_DISABLE",
            "VLLM_USE_DEEP_GEMM", "VLLM_USE_FLASHINFER_SAMPLER", "VLLM_USE_TRITON_AWQ", "VLLM_USE_V2_MODEL_RUNNER",
        }
    ),
    packages=("vllm", "torch", "transformers"),
    check="prunus.evaluation.backends.vllm:check_version",
    forms=COMPRESSED,
    ladder=COMPRESSED,
    lacks="prunus.evaluation.backends.vllm:why_not",
    cache_options=(("kv_cache_dtype",), ("kv_cache_dtype",)),
    block=128,
)  # fmt: skip
