"""Speed of decoding on a CPU: the sparse kernel compared with torch and with the best dense kernel.

`python benchmarks/decode.py` (some five minutes, 9 GB) prints Markdown. In one process, variants alternate call by
call, over distinct matrices that together exceed the caches. Figures are medians of the thread's CPU time, which other
processes affect only by sharing memory bandwidth and caches. With `--threads 2` they are medians of wall time, so
nothing else should be running.

stock: torch's bfloat16 linear. pre-packed: oneDNN with weights in its own layout (as inductor's freezing uses it). own
dense: the kernel of Prunus on unpacked weights. Two ratios are printed: over stock, and over the best dense variant.
"""

import argparse
import copy
import inspect
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, Qwen3Config

from prunus.checkpoint.precision import use_fast_products
from prunus.evaluation.backends import rows as decoding
from prunus.evaluation.backends.rows import PaddedRows
from prunus.native.load import kernel
from prunus.sparse import DenseLinear, SparseLinear, multiply, pack, sparsify
from prunus.sparse.choose import kernel_rows, race, stock_linear
from prunus.sparse.linear import apply
from prunus.sparse.sixteen_bits import kept_of, to_float32
from prunus.sparse.weight import huge_pages

SHAPES = [(4096, 4096), (14336, 4096), (2048, 6144)]
SPARSITIES = [0.0, 0.2, 0.3, 0.5, 0.6, 0.7]
BATCHES = [1, 2, 4, 8]
# Dense weights in 16 bits: shapes of Linears of Qwen3-0.6B and SmolLM2, numbers of rows, and batches of whole models.
SIXTEEN_SHAPES, SIXTEEN_ROWS = [(3072, 1024), (576, 1536)], [1, 4, 8, 16, 32, 64, 512]
SIXTEEN_BATCHES = [1, 8, 32, 64]
PROMPT_SHAPES = [(576, 576), (1536, 576), (576, 1536), (2048, 2048), (4096, 4096), (6144, 2048), (2048, 6144)]
PROMPTS = [9, 16, 32, 64, 128, 256, 512, 2048]
ROTATED_BYTES = 150_000_000  # total size of the dense matrices of a shape
SMOLLM2 = Path(__file__).resolve().parents[1] / ".cache" / "smollm2"


def clock() -> int:
    """Return nanoseconds of this thread's CPU time if there is one thread, else of wall time."""
    return time.thread_time_ns() if torch.get_num_threads() == 1 else time.perf_counter_ns()


def turns(variants: dict[str, Callable[[int], object]], count: int, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of each variant, called with the indices of the matrices in rotation."""
    times: dict[str, list[int]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, run in variants.items():
            started = clock()
            run(repeat % count)
            if repeat:
                times[name].append(clock() - started)
    return {name: statistics.median(found) / 1e6 for name, found in times.items()}


def zeroed(weight_OI: Tensor, sparsity: float) -> Tensor:
    """Return the weight with this share of zeros at random."""
    return weight_OI.masked_fill(torch.rand(weight_OI.shape) < sparsity, 0)


@torch.inference_mode()
def kernels(shape: tuple[int, int], repeats: int) -> None:
    """Print a table of milliseconds and both ratios, for every sparsity and batch size."""
    outputs, inputs = shape
    count = max(2, ROTATED_BYTES // (2 * outputs * inputs))
    stock = [torch.randn(shape, dtype=torch.bfloat16) for _ in range(count)]
    own = [weight.clone() for weight in stock]
    for weight in own:
        huge_pages(weight)
    prepacked = [torch.ops.mkldnn._reorder_linear_weight(weight, 1) for weight in stock]
    sparse = {s: [pack(zeroed(weight, s)) for weight in stock] for s in SPARSITIES}
    columns = [f"{s:.0%} zeros" for s in SPARSITIES]
    print(f"\n{outputs} x {inputs}: milliseconds (read, GB/s); ratio over stock / over the best dense\n")
    print(f"| batch | stock | pre-packed | own dense | {' | '.join(columns)} |")
    print("|" + "---|" * (4 + len(columns)))
    for batch in BATCHES:
        x = torch.randn(batch, inputs, dtype=torch.bfloat16)
        variants: dict[str, Callable[[int], object]] = {
            "stock": lambda i: functional.linear(x, stock[i]),  # noqa: B023
            "pre-packed": lambda i: torch.ops.mkldnn._linear_pointwise(x, prepacked[i], None, "none", [], ""),  # noqa: B023
            "own dense": lambda i: multiply(x, own[i]),  # noqa: B023
        }
        for s in SPARSITIES:
            variants[str(s)] = lambda i, packs=sparse[s]: multiply(x, packs[i])  # noqa: B023
        ms = turns(variants, count, repeats)
        best = min(ms["stock"], ms["pre-packed"], ms["own dense"])
        dense = [f"{ms[name]:.2f} ({outputs * inputs * 2 / 1e6 / ms[name]:.0f})" for name in list(variants)[:3]]
        ours = [
            f"{ms[str(s)]:.2f} ({sparse[s][0].nbytes / 1e6 / ms[str(s)]:.0f}); "
            f"{ms['stock'] / ms[str(s)]:.2f} / {best / ms[str(s)]:.2f}"
            for s in SPARSITIES
        ]
        print(f"| {batch} | {' | '.join([*dense, *ours])} |", flush=True)
    ceilings = [f"{s:.0%}: {outputs * inputs * 2 / sparse[s][0].nbytes:.2f}" for s in SPARSITIES]
    print(f"\nCeiling by bytes over a perfect dense kernel: {', '.join(ceilings)}.")


@torch.inference_mode()
def prompts(repeats: int) -> None:
    """Print a table: prompts through packed weights, with the automatic choice, compared with torch's dense Linear."""
    print("\nPrompts, 50 % zeros: speed over stock (GFLOP/s of stock, of ours)\n")
    print(f"| outputs x inputs | {' | '.join(f'{rows} rows' for rows in PROMPTS)} | kernel up to |")
    print("|" + "---|" * (2 + len(PROMPTS)))
    for outputs, inputs in PROMPT_SHAPES:
        count = min(64, max(2, ROTATED_BYTES // (2 * outputs * inputs)))
        stock = [zeroed(torch.randn(outputs, inputs, dtype=torch.bfloat16), 0.5) for _ in range(count)]
        sparse = [pack(weight) for weight in stock]
        most = kernel_rows(sparse[0], torch.bfloat16)
        cells = []
        for rows in PROMPTS:
            x = torch.randn(rows, inputs, dtype=torch.bfloat16)
            variants: dict[str, Callable[[int], object]] = {
                "stock": lambda i: functional.linear(x, stock[i]),  # noqa: B023
                "ours": lambda i: apply(x, sparse[i], None, most),  # noqa: B023
            }
            ms = turns(variants, count, max(5, repeats * 64 // max(rows, 64)))
            rate = {name: 2 * outputs * inputs * rows / found / 1e6 for name, found in ms.items()}
            cells.append(f"{ms['stock'] / ms['ours']:.2f} ({rate['stock']:.0f}, {rate['ours']:.0f})")
        print(f"| {outputs} x {inputs} | {' | '.join(cells)} | {most if most <= PROMPTS[-1] else 'any'} |", flush=True)


def packing() -> None:
    """Print how long it takes to convert weights to the kernel's layout."""
    weights = [zeroed(torch.randn(8192, 8192, dtype=torch.bfloat16), 0.5) for _ in range(4)]
    pack(weights[0])
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(4):
        for weight in weights:
            pack(weight)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    gigabytes = 16 * weights[0].nbytes / 1e9
    print(
        f"\nPacking {gigabytes:.1f} GB of dense weights: {wall:.1f} s ({cpu:.1f} CPU s), "
        f"so 7 B weights (14 GB) take about {14 * wall / gigabytes:.0f} s."
    )


def qwen3(width: int) -> nn.Module:
    """Return a random model in bfloat16 of the shape of Qwen3-0.6B (width 1024) or Qwen3-1.7B (width 2048)."""
    shape: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": 28,
        "head_dim": 128,
    }
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 151936, "tie_word_embeddings": True}
    config = Qwen3Config(**shape, **heads)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    rotary = type(model.model.rotary_emb)
    model = model.to_empty(device="cpu")
    model.model.rotary_emb = rotary(config)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1)
        else:
            parameter.data.normal_(0, 0.02)
    model.tie_weights()
    return model


def halve(model: nn.Module, sparsity: float) -> nn.Module:
    """Return the model with this share of zeros in the Linears of its blocks, by magnitude."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and "lm_head" not in name:
            size = module.weight.data.abs().float()
            module.weight.data.masked_fill_(size <= size.flatten().kthvalue(int(sparsity * size.numel())).values, 0)
    return model.eval().requires_grad_(False)


def through_own_dense(model: nn.Module) -> nn.Module:
    """Return the model with its Linears run by our dense kernel, on the same weights in the same memory."""
    memo: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    other = copy.deepcopy(model, memo)
    for owner in list(other.modules()):
        for name, child in list(owner.named_children()):
            if type(child) is nn.Linear:
                setattr(owner, name, DenseLinear(child.get_parameter("weight"), child.bias))
    return other


def bytes_read(model: nn.Module) -> int:
    """Return the bytes of weights that one token reads: every Linear once."""
    total = 0
    for module in model.modules():
        if isinstance(module, SparseLinear):
            total += module.packed.nbytes
        elif isinstance(module, (nn.Linear, DenseLinear)):
            total += module.weight.nbytes
    return total


@torch.inference_mode()
def steps(models: dict[str, Any], batch: int, count: int) -> dict[str, float]:
    """Return the median milliseconds of a decoding step of each model, measured alternately."""
    ids = torch.randint(0, 1000, (batch, 16))
    key = "cache" if "cache" in inspect.signature(next(iter(models.values())).forward).parameters else "past_key_values"
    caches = {name: {key: model(ids, use_cache=True).past_key_values} for name, model in models.items()}
    times: dict[str, list[int]] = {name: [] for name in models}
    for step in range(count + 1):
        for name, model in models.items():
            started = clock()
            model(ids[:, :1], use_cache=True, **caches[name])
            if step:
                times[name].append(clock() - started)
    return {name: statistics.median(found) / 1e6 for name, found in times.items()}


@torch.inference_mode()
def prefill(models: dict[str, Any], tokens: int, repeats: int) -> dict[str, float]:
    """Return the median milliseconds of a prompt's forward pass."""
    ids = torch.randint(0, 1000, (1, tokens))
    return turns(
        {name: lambda _, model=model: model(ids, use_cache=True) for name, model in models.items()}, 1, repeats
    )


def end_to_end(name: str, stock: nn.Module, count: int) -> None:
    """Print a table of tokens per second of a model, dense and sparse."""
    own = through_own_dense(stock)
    # First only the blocks' Linears: the head still runs in torch.
    memo: dict[int, Any] = {id(parameter): parameter for parameter in stock.parameters()}
    sparse = copy.deepcopy(stock, memo)
    summary = sparsify(sparse)
    print(f"\n{name}, 50 % zeros in its blocks. {summary}\n")
    print("| batch | variant | ms a step | tokens/s | MB a token | over stock | over own dense | of byte ceiling |")
    print("|" + "---|" * 8)
    models = {"stock": stock, "own dense": own, "sparse": sparse}
    read = {label: bytes_read(model) for label, model in models.items()}
    for batch in BATCHES:
        ms = steps(models, batch, count)
        for label in models:
            over_dense = ms["own dense"] / ms[label]
            share = f"{over_dense / (read['own dense'] / read[label]):.0%}" if label == "sparse" else ""
            print(
                f"| {batch} | {label} | {ms[label]:.1f} | {1000 * batch / ms[label]:.1f} "
                f"| {read[label] / batch / 1e6:.0f} "
                f"| {ms['stock'] / ms[label]:.2f} | {over_dense:.2f} | {share} |",
                flush=True,
            )
    for tokens in (128, 512):
        ms = prefill(models, tokens, 7 if tokens < 512 else 3)
        print(
            f"\nPrompt of {tokens} tokens: stock {ms['stock']:.0f} ms, sparse {ms['sparse']:.0f} ms "
            f"({ms['stock'] / ms['sparse']:.2f} of stock's speed).",
            flush=True,
        )


@torch.inference_mode()
def sixteen_bit_linears() -> None:
    """Print a table of milliseconds of a Linear: torch in float32 and in bfloat16, and our kernel on 16-bit weights."""
    print(
        "\n| outputs x inputs | rows | float32, ms | torch's bfloat16 | 16-bit weights | over float32 | over bfloat16 |"
    )
    print("|" + "---|" * 7)
    for outputs, inputs in SIXTEEN_SHAPES:
        copies = max(2, ROTATED_BYTES // 4 // (outputs * inputs))
        wide = [torch.randn(outputs, inputs) for _ in range(copies)]
        narrow = [weight.bfloat16() for weight in wide]
        torchs = nn.ModuleList(stock_linear(weight, None) for weight in narrow)
        use_fast_products(torchs)
        for rows in SIXTEEN_ROWS:
            count, x = max(1, copies * 8 // max(8, rows)), torch.randn(rows, inputs)
            seconds = race(
                [
                    lambda: [functional.linear(x, weight) for weight in wide[:count]],  # noqa: B023
                    lambda: [linear(x.bfloat16()) for linear in torchs[:count]],  # noqa: B023
                    lambda: [multiply(x, weight) for weight in narrow[:count]],  # noqa: B023
                ],
                5,
            )
            ms = [1000 * found / count for found in seconds]
            speeds = " | ".join(f"{found:.2f}" for found in (*ms, ms[0] / ms[2], ms[1] / ms[2]))
            print(f"| {outputs} x {inputs} | {rows} | {speeds} |", flush=True)


@torch.inference_mode()
def sixteen_bits(name: str, model: Any, count: int, context: int) -> None:
    """Print a table: a dense bfloat16 model decoded by hf in float32, in torch's bfloat16, and with 16-bit weights."""
    model.eval().requires_grad_(False)
    shared: dict[int, Any] = {id(parameter): parameter for parameter in model.parameters()}
    variants = {"float32": copy.deepcopy(model).float(), "bfloat16": copy.deepcopy(model, shared)}
    use_fast_products(variants["bfloat16"])
    variants["16-bit weights"] = to_float32(model)
    megabytes = {label: sum(p.nbytes for p in one.parameters()) / 1e6 for label, one in variants.items()}
    sizes = ", ".join(f"{label} {size:.0f} MB" for label, size in megabytes.items())
    print(f"\n{name}. {kept_of(model)}. In memory: {sizes}.\n")
    print("| batch | float32, tokens/s | torch's bfloat16 | 16-bit weights | over float32 | over bfloat16 |")
    print("|" + "---|" * 6)
    for batch in SIXTEEN_BATCHES:
        rows = {label: PaddedRows(one, [list(range(5, 5 + context))] * batch) for label, one in variants.items()}
        times: dict[str, list[int]] = {label: [] for label in variants}
        for row in rows.values():
            row.prefill()
        for step in range(max(3, count * 8 // (8 + batch)) + 1):
            for label, row in rows.items():
                started = clock()
                row.step([7] * batch)
                if step:
                    times[label].append(clock() - started)
        ms = {label: statistics.median(found) / 1e6 for label, found in times.items()}
        speeds = " | ".join(f"{1000 * batch / ms[label]:.1f}" for label in variants)
        ours = ms["16-bit weights"]
        print(f"| {batch} | {speeds} | {ms['float32'] / ours:.2f} | {ms['bfloat16'] / ours:.2f} |", flush=True)
    ids = torch.arange(5, 517)[None]
    ms = turns({label: lambda _, one=one: one(ids, logits_to_keep=1) for label, one in variants.items()}, 1, 3)
    rates = ", ".join(f"{label} {512_000 / found:.0f}" for label, found in ms.items())
    print(f"\nPrompt of 512 tokens, tokens/s: {rates}.", flush=True)
    exact = variants["float32"](ids[:, :64]).logits
    for label in ("bfloat16", "16-bit weights"):
        apart = (variants[label](ids[:, :64]).logits.float() - exact).abs().max() / exact.abs().max()
        print(f"Largest difference of the logits of {label} from float32, relative to the largest: {apart:.1e}.")


def describe_machine() -> str:
    """Return a line with processor, memory and versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    field = {line.split(":")[0].strip(): line.split(":")[1].strip() for line in reversed(lines) if ":" in line}
    count = sum(line.startswith("processor") for line in lines)
    return (
        f"{field['model name']} (family {field['cpu family']}, model {field['model']}), {count} processors, "
        f"{field.get('cache size', '?')} cache, Linux {platform.release()}, torch {torch.__version__}, "
        f"kernel {kernel().name}, {torch.get_num_threads()} thread(s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parts = ["kernels", "prompts", "packing", "smollm2", "qwen3", "sixteen", "sixteen-models"]
    parser.add_argument("--only", choices=parts, nargs="*")
    options = parser.parse_args()
    wanted: Sequence[str] = options.only or parts
    decoding.GROW_BY = 32  # the caches of three models at once take much memory
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    print(describe_machine())
    if "kernels" in wanted:
        for shape in SHAPES:
            kernels(shape, options.repeats)
    if "prompts" in wanted:
        prompts(4 * options.repeats)
    if "packing" in wanted:
        packing()
    if "smollm2" in wanted:
        model: Any = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.bfloat16)
        end_to_end("SmolLM2-135M", halve(model, 0.5), 4 * options.steps)
    if "qwen3" in wanted:
        end_to_end("Random model of the shape of Qwen3-1.7B", halve(qwen3(2048), 0.5), options.steps)
    if "sixteen" in wanted:
        sixteen_bit_linears()
    if "sixteen-models" in wanted:
        model = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.bfloat16)
        sixteen_bits("SmolLM2-135M", model, options.steps, 64)
        sixteen_bits("A random model of the shape of Qwen3-0.6B", qwen3(1024), max(3, options.steps // 3), 16)


if __name__ == "__main__":
    main()
