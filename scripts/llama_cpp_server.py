"""Serve a GGUF file with the llama.cpp inside the package xllamacpp, as llama-server does, until it is stopped.

    python scripts/llama_cpp_server.py model.gguf --port 8080 --name model

The package has no command of its own. The options are llama-server's. Slots share the context.
"""

import argparse
import threading
import time
from importlib import import_module
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--name", help="of the model; default: the file's name without .gguf")
    size = "tokens of all slots together; default: the model's"
    parser.add_argument("-c", "--ctx-size", type=int, default=0, metavar="N", help=size)
    parser.add_argument("-np", "--parallel", type=int, default=4, metavar="N", help="slots, for requests at once")
    parser.add_argument("-t", "--threads", type=int, default=0, metavar="N", help="default: llama.cpp's choice")
    for short, part in (("k", "keys"), ("v", "values")):
        words = f"-ct{short}", f"--cache-type-{short}"
        parser.add_argument(*words, default="f16", metavar="TYPE", help=f"of {part} in the cache, such as q8_0")
    budget = {
        "type": int,
        "default": -1,
        "metavar": "N",
        "help": "tokens of thinking of requests that name none; -1: any",
    }
    parser.add_argument("--reasoning-budget", **budget)
    parser.add_argument(
        "--reasoning-budget-message", default="", metavar="TEXT", help="before the end of thinking there"
    )
    options = parser.parse_args()

    xllamacpp = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(options.file)
    params.model_alias = {options.name or options.file.stem}
    params.port, params.n_ctx, params.n_parallel = options.port, options.ctx_size, options.parallel
    params.cache_type_k, params.cache_type_v = (
        xllamacpp.ggml_type[f"GGML_TYPE_{one.upper()}"] for one in (options.cache_type_k, options.cache_type_v)
    )
    params.sampling.reasoning_budget_tokens = options.reasoning_budget
    params.sampling.reasoning_budget_message = options.reasoning_budget_message
    params.endpoint_metrics = True
    if options.threads:
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    try:
        server = xllamacpp.Server(params)
    except RuntimeError:
        time.sleep(1)  # until llama.cpp, whose log has a thread of its own, has said why
        raise SystemExit(1) from None
    print(f"{server.listening_address} serves {options.file}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
