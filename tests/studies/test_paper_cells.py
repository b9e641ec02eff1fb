"""Every pruning cell of examples/paper.toml on a small model, against loops that follow the study's code.

The rules are those of OCM-7898/TTS-Pruning @ e281a0d, wanda/lib/prune.py and influence_helper.py, written again over
lists and floats; activations come from transformers' own model. Nothing here is shared with the package.
"""

import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.signal import savgol_filter
from tiny_models import make_model, random_rows
from transformers import AutoModelForCausalLM

import prunus
from prunus.studies.file import read_study

PAPER = Path(__file__).parents[2] / "examples/paper.toml"
BLOCKS, SEQUENCES = 6, random_rows(5, 24)
SPARSITIES = (0.1, 0.2)
# Of a small random model: outliers must be rarer than weights, and blocks must differ, or OWL has nothing to go by.
OUTLIERS = 3.0


class Study:
    """The study's way, on one model, from the dense weights each time."""

    def __init__(self, folder: Path, influences: list[dict[str, float]]) -> None:
        self.folder, self.influences = folder, influences
        self.load()
        self.dense = self.inputs()

    def load(self) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.blocks = [
            {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
            for block in self.model.model.layers
        ]

    @torch.inference_mode()
    def inputs(self) -> list[dict[str, list[float]]]:
        """Of every block and Linear the norm of each input over all tokens, with the weights as they are now."""
        seen: list[dict[str, Any]] = [{} for _ in self.blocks]
        handles = []
        for squares, linears in zip(seen, self.blocks, strict=True):
            for name, linear in linears.items():

                def hook(_module, arguments, name=name, squares=squares):
                    squares[name] = squares.get(name, 0) + arguments[0].double().square().sum((0, 1))

                handles.append(linear.register_forward_pre_hook(hook))
        for ids in SEQUENCES:
            self.model(input_ids=torch.tensor([ids]))
        for handle in handles:
            handle.remove()
        return [{name: squares.sqrt().tolist() for name, squares in block.items()} for block in seen]

    def uniform(self, method: str, sparsity: float) -> None:
        for index, linears in enumerate(self.blocks):
            norms = self.inputs()[index] if method == "wanda" else {}  # earlier blocks are pruned already
            for name, linear in linears.items():
                table = linear.weight.data.tolist()
                if method == "wanda":
                    zero_rows(table, scores_of(table, norms[name]), sparsity)
                else:
                    ordered = sorted(abs(w) for row in table for w in row)
                    limit = ordered[int(len(ordered) * sparsity)]
                    table = [[0.0 if abs(w) <= limit else w for w in row] for row in table]
                linear.weight.data = torch.tensor(table)

    def owl(self, method: str, sparsity: float) -> None:
        shares = []
        for linears, norms in zip(self.blocks, self.dense, strict=True):
            scores = [s for n, m in linears.items() for row in scores_of(m.weight.tolist(), norms[n]) for s in row]
            mean = math.fsum(scores) / len(scores)
            shares.append(100 * sum(s > OUTLIERS * mean for s in scores) / len(scores))
        extra = [(share - min(shares)) / (max(shares) - min(shares)) * 2 * 0.08 for share in shares]
        kept = [e - sum(extra) / len(extra) + (1 - sparsity) for e in extra]
        self.least = min(1 - k for k in kept)
        for index, linears in enumerate(self.blocks):
            norms, share = self.inputs()[index] if method == "wanda" else {}, 1 - kept[index]
            for name, linear in linears.items():
                table = linear.weight.data.tolist()
                if method == "wanda":
                    zero_rows(table, scores_of(table, norms[name]), 0.01 if share <= 0 else share)
                else:
                    zero_matrix(table, [[abs(w) for w in row] for row in table], share)
                linear.weight.data = torch.tensor(table)

    def layerif(self, method: str, sparsity: float) -> None:
        for part, inside in (("attention", "self_attn"), ("mlp", "mlp")):
            sums = [sum(max(0.0, row[f"layer_{i}_{part}"]) for row in self.influences) for i in range(BLOCKS)]
            share = [(s - min(sums)) / (max(sums) - min(sums)) for s in sums]
            share = [min(1.0, max(0.0, float(s))) for s in savgol_filter(share, 5, 2)]
            ratio = [(1 - (s - min(share)) / (max(share) - min(share) + 1e-8)) * 0.35 + 0.05 for s in share]
            sizes = [sum(m.weight.numel() for n, m in linears.items() if inside in n) for linears in self.blocks]
            scale = sparsity * sum(sizes) / sum(r * n for r, n in zip(ratio, sizes, strict=True))
            for linears, norms, r in zip(self.blocks, self.dense, ratio, strict=True):
                for name in (name for name in linears if inside in name):
                    table = linears[name].weight.data.tolist()
                    ones = [1.0] * len(table[0])
                    scores = scores_of(table, norms[name] if method == "wanda" else ones)
                    zero_matrix(table, scores, min(1.0, scale * r))
                    linears[name].weight.data = torch.tensor(table)


def scores_of(table, norms):
    return [[abs(w) * norm for w, norm in zip(row, norms, strict=True)] for row in table]


def zero_rows(table, scores, sparsity):
    for row, values in zip(table, scores, strict=True):
        for i in sorted(range(len(row)), key=values.__getitem__)[: int(len(row) * sparsity)]:
            row[i] = 0.0


def zero_matrix(table, scores, sparsity):
    places = [(score, o, i) for o, row in enumerate(scores) for i, score in enumerate(row)]
    for _, o, i in sorted(places)[: max(0, int(len(places) * sparsity))]:
        table[o][i] = 0.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    make_model(folder / "m", "qwen3", blocks=BLOCKS, seed=4)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in SEQUENCES))
    rng = np.random.default_rng(1)
    names = [f"layer_{i}_{part}" for i in range(BLOCKS) for part in ("attention", "mlp")]
    samples = [dict(zip(names, rng.normal(size=len(names)).tolist(), strict=True)) for _ in range(7)]
    (folder / "influences.json").write_text(json.dumps(samples))
    return folder, Study(folder / "m", samples)


STEPS = [recipe for entry in read_study(PAPER).entries for recipe in entry.steps]
CELLS = [recipe for recipe in STEPS if isinstance(recipe, prunus.PruneRecipe)]


def test_the_paper_has_twelve_cells_of_single_weights():
    made = [(cell.method, cell.allocation, cell.sparsity) for cell in CELLS]
    assert len(made) == 12
    assert set(made) == set(product(("magnitude", "wanda"), ("uniform", "owl", "layerif"), SPARSITIES))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: f"{cell.method}-{cell.allocation}-{cell.sparsity}")
def test_masks_are_those_of_the_studys_code(place, tmp_path, cell):
    folder, study = place
    changes: dict[str, Any] = {"calibration": str(folder / "rows.jsonl"), "sequences": len(SEQUENCES)}
    if cell.allocation == "layerif":
        changes |= {"scores": str(folder / "influences.json")}
    if cell.allocation == "owl":
        changes |= {"outlier_threshold": OUTLIERS}
    prunus.prune(folder / "m", tmp_path / "out", replace(cell, **changes))
    found = load_file(tmp_path / "out/model.safetensors")
    study.load()
    getattr(study, cell.allocation)(cell.method, cell.sparsity)
    for index, linears in enumerate(study.blocks):
        for name, linear in linears.items():
            assert torch.equal(found[f"model.layers.{index}.{name}.weight"], linear.weight.data), (index, name)
    if cell.allocation == "owl":
        assert (study.least < 0) == (cell.sparsity == 0.1)  # so that what happens below 0 is seen
