"""How much rounding alone changes the perplexity of a pruned model, as other kernels or machines may.

`python benchmarks/rounding.py` prunes SmolLM2-135M as benchmarks/pruning.py does (two passes, 50 %, the same tokens),
and again with every number of the embedding moved up or down by one unit in the last place, or unchanged. Other kernels
change more, since they round differently in every layer. The original embedding is restored before measuring.
"""

import argparse
import shutil
from math import exp
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from pruning import MODEL, SAMPLES, SEQLEN, WORK, added, against, losses, prepare
from safetensors.torch import load_file, save_file
from torch import Tensor

import prunus

FOLDER, FILE, EMBEDDING = WORK / "rounding", "model.safetensors", "model.embed_tokens.weight"


def jittered(embedding_VD: Tensor, seed: int) -> Tensor:
    """Return the embedding (V tokens, D width, bfloat16) with jitter; zeros stay, and seed 0 changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    pattern_VD = embedding_VD.view(torch.int16)
    step_VD = torch.randint(-1, 2, pattern_VD.shape, generator=generator, dtype=torch.int16)
    step_VD *= (pattern_VD & 0x7FFF > 1) & (seed != 0)
    return (pattern_VD + step_VD).view(torch.bfloat16)


def put_embedding(model: Path, embedding_VD: Tensor) -> None:
    """Replace the embedding of a model on disk."""
    tensors = load_file(model / FILE)
    save_file(tensors | {EMBEDDING: embedding_VD}, model / FILE, {"format": "pt"})


def measure(method: str, seed: int) -> list[float]:
    """Return the losses of the held-out sequences."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    source, out = FOLDER / "source", FOLDER / "out"
    shutil.copytree(MODEL, source)
    embedding_VD = load_file(source / FILE)[EMBEDDING]
    put_embedding(source, jittered(embedding_VD, seed))
    calibration = str(WORK / "calibration.jsonl")
    on: dict[str, Any] = {"calibration": calibration, "sequences": SAMPLES, "seqlen": SEQLEN}
    recipe = prunus.PruneRecipe(method=method, sparsity=0.5, **on)
    prunus.prune(source, out, recipe)
    put_embedding(out, embedding_VD)
    return losses(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--method", choices=("wanda", "sparsegpt"), default="wanda")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=Path, help="as of benchmarks/pruning.py")
    arguments = parser.parse_args()
    prepare(peer=False)
    torch.set_num_threads(1)
    lines = []
    for seed in range(arguments.seeds + 1):
        line = {"name": f"{arguments.method}, rounding", "seed": seed, "losses": measure(arguments.method, seed)}
        lines.append(added(arguments.rows, line))
        found = lines[-1]["losses"]
        print(f"{seed}: {exp(mean(found)):.3f}, {against(found, lines[0]['losses'])} % above seed 0", flush=True)
    disturbed = [exp(mean(line["losses"])) for line in lines[1:]]
    print(f"mean {mean(disturbed):.3f}, standard deviation {100 * stdev(disturbed) / mean(disturbed):.2f} %")
    shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()
