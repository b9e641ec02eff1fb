"""SGLang, as a server that is reached or started."""

from prunus.settings.engines.facts import TORCH_VARIABLES, EngineFacts

SGLANG = EngineFacts(
    name="sglang",
    starts=(("python", "-m", "sglang.launch_server"),),
    owner="sglang",
    for_seeds="--enable-deterministic-inference",
    budget=("custom_params", "thinking_budget"),
    for_budget="--reasoning-parser and strict thinking",
    parsers={"</think>": "qwen3"},
    speed=frozenset(
        {
            "api_key", "chunked_prefill_size", "context_length", "data_parallel_size", "dist_init_addr", "dp",
            "dp_size", "enable_metrics", "host", "log_level", "log_requests", "max_prefill_tokens",
            "max_running_requests", "max_total_tokens", "mem_fraction_static", "nnodes", "node_rank", "port", "pp_size",
            "schedule_policy", "served_model_name", "tensor_parallel_size", "tp", "tp_size",
        }
    ),
    of_length=frozenset({"context_length"}),
    variables=TORCH_VARIABLES | {"SGLANG_ENABLE_DETERMINISTIC_INFERENCE", "SGL_ENABLE_JIT_DEEPGEMM"},
    cache_options=(("kv_cache_dtype",), ("kv_cache_dtype",)),
)  # fmt: skip
