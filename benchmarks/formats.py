"""Whether vLLM computes what the formats of `prunus quantize` say: `python benchmarks/formats.py MODEL FOLDER`.

Mean absolute differences of log-probabilities, of 10 texts of 128 tokens from docstrings, to those of torch in float32
with the same weights: in vLLM, in torch in bfloat16, and of W8A8 also in float32 with activations rounded as the format
says. With AMX vLLM by default rounds activations of W4A16, too: a line's `vllm` is with VLLM_CPU_INT4_W4A8=0, which
turns that off, and `vllm_default` without. Needs an environment with vLLM. FOLDER keeps the forms; a line for each is
added to --rows.
"""

import argparse
import json
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import torch
from docstrings import docstrings
from finished import add_line
from torch import Tensor, nn

import prunus
from prunus.checkpoint.resolve import load_tokenizer
from prunus.evaluation.backends.hf import load_model
from prunus.recipes.quantize import QuantizeRecipe

TEXTS, TOKENS = 10, 128
FORMS = {"dense": None, "W8A8": QuantizeRecipe(method="rtn"), "W4A16": QuantizeRecipe(bits=4, method="rtn")}
ENGINE = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCH_COMPILE_DISABLE": "1"}


def texts(model: Path) -> list[list[int]]:
    """Token ids of each text."""
    tokenizer = load_tokenizer(model)
    found = (tokenizer.encode(text, add_special_tokens=False)[:TOKENS] for text in docstrings())
    return [ids for ids in found if len(ids) == TOKENS][:TEXTS]


def of_torch(folder: Path, ids: list[list[int]], dtype: torch.dtype, rounded: bool = False) -> Tensor:
    """(texts, tokens - 1) log-probabilities of tokens after those before. rounded: activations, to 8 bits."""
    model = load_model(folder, "cpu", dtype)
    for name, module in model.named_modules():
        if rounded and isinstance(module, nn.Linear) and ".layers." in name:
            module.register_forward_pre_hook(in_8_bits)
    tokens_NT = torch.tensor(ids)
    with torch.inference_mode():
        logprobs_NTV = model(input_ids=tokens_NT).logits.float().log_softmax(-1)
    return logprobs_NTV[:, :-1].gather(-1, tokens_NT[:, 1:, None]).squeeze(-1)


def in_8_bits(_module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """The inputs (..., I) of a Linear, each token rounded to 255 steps up to its largest absolute value."""
    (activation,) = inputs
    step = activation.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
    return (activation / step).round() * step


def of_vllm(folder: Path, ids: list[list[int]], w4a8: str = "0") -> Tensor:
    """As of_torch. w4a8: VLLM_CPU_INT4_W4A8."""
    os.environ.update(ENGINE, VLLM_CPU_INT4_W4A8=w4a8)
    vllm = import_module("vllm")
    engine = vllm.LLM(str(folder), dtype="bfloat16", enforce_eager=True, max_model_len=2 * TOKENS)
    asked = vllm.SamplingParams(max_tokens=1, prompt_logprobs=0)
    outputs = engine.generate([{"prompt_token_ids": row} for row in ids], asked)
    engine.llm_engine.engine_core.shutdown()  # which this process would wait for at its end
    rows = zip(ids, outputs, strict=True)
    return torch.tensor([
        [found[token].logprob for token, found in zip(row[1:], output.prompt_logprobs[1:], strict=True)]
        for row, output in rows
    ])  # fmt: skip


def alone(measure: Callable[..., Tensor], *arguments: object) -> Tensor:
    """What measure returns, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(measure, *arguments).result()


def main() -> None:
    """Print a line for each form."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    ids = texts(options.model)
    for name, recipe in FORMS.items():
        folder = options.folder / name if recipe else options.model
        if not folder.exists():
            prunus.quantize(options.model, folder, recipe)
        exact = alone(of_torch, folder, ids, torch.float32)
        found = {"vllm": alone(of_vllm, folder, ids), "bfloat16": alone(of_torch, folder, ids, torch.bfloat16)}
        if name == "W8A8":
            found["rounded"] = alone(of_torch, folder, ids, torch.float32, True)
        if name == "W4A16":
            found["vllm_default"] = alone(of_vllm, folder, ids, "1")
        line = {"model": options.model.name, "form": name}
        line |= {way: round((one - exact).abs().mean().item(), 4) for way, one in found.items()}
        print(json.dumps(line), flush=True)
        add_line(options.rows, line)


if __name__ == "__main__":
    main()
