"""Print what vLLM makes room for in its cache, as JSON: the specification of each layer, by the folder of a model.

    python vllm_caches.py MODEL... [--cache-dtype NAME]

Each model is loaded by a worker of its own, with random weights, and computes nothing, so types count whose operations
the CPU's build lacks.
"""

import argparse
import json
import os
import sys
import tempfile
import traceback
from typing import Any


def specs(folder: str, cache_dtype: str) -> dict[str, tuple[str, int, int, int | None]]:
    """(class, tokens of a page, bytes of a page, window) of each layer that keeps something."""
    from vllm.config import set_current_vllm_config  # pyright: ignore[reportMissingImports]
    from vllm.engine.arg_utils import EngineArgs  # pyright: ignore[reportMissingImports]
    from vllm.v1.worker.cpu_worker import CPUWorker  # pyright: ignore[reportMissingImports]

    given: dict[str, Any] = {"load_format": "dummy", "skip_tokenizer_init": True, "enforce_eager": True}
    args = EngineArgs(model=folder, dtype="bfloat16", kv_cache_dtype=cache_dtype, **given)  # pyright: ignore[reportArgumentType]
    config = args.create_engine_config()
    with set_current_vllm_config(config):
        worker = CPUWorker(config, 0, 0, f"file://{tempfile.mkdtemp()}/workers", is_driver_worker=True)
        worker.init_device()
        worker.load_model()
        return {
            name: (type(spec).__name__, spec.block_size, spec.page_size_bytes, getattr(spec, "sliding_window", None))
            for name, spec in worker.get_kv_cache_spec().items()
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--cache-dtype", default="auto")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import vllm.v1.worker.cpu_worker  # noqa: F401  # pyright: ignore[reportMissingImports]  once for all children

    for folder in options.models:
        if os.fork() == 0:  # the state of a worker is that of its process
            try:
                found: dict[str, Any] = {"folder": folder, "layers": specs(folder, options.cache_dtype)}
                print("\n" + json.dumps(found), flush=True)
            except Exception:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(0)
        os.wait()


if __name__ == "__main__":
    main()
