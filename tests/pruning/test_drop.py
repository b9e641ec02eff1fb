"""drop(): Block Influence against plain loops, and models that work as before without the blocks."""

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, make_model, random_rows
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.errors import PrunusError
from prunus.pruning.depth.shortgpt import block_influence
from prunus.recipes import DropRecipe, PruneRecipe


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    sequences = [row[:n] for row, n in zip(random_rows(5, 40), (40, 3, 40, 17, 29), strict=True)]
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in sequences))
    return path


def recipe(rows, blocks, **changes):
    return DropRecipe(**{"calibration": str(rows), "sequences": 5, "blocks": blocks} | changes)


def influence_by_hand(folder, rows):
    """1 - mean over all tokens of the cosine, in plain Python, from hooks on transformers' own model."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    total = [0.0] * len(model.model.layers)
    tokens = 0

    def watch(index):
        def hook(_module, inputs, output):
            for before, after in zip(inputs[0][0].tolist(), output[0].tolist(), strict=True):
                product = sum(a * b for a, b in zip(before, after, strict=True))
                total[index] += product / (math.hypot(*before) * math.hypot(*after))

        return hook

    for index, block in enumerate(model.model.layers):
        block.register_forward_hook(watch(index))
    for line in rows.read_text().splitlines():
        ids = json.loads(line)["token_ids"]
        tokens += len(ids)
        with torch.inference_mode():
            model(input_ids=torch.tensor([ids]))
    return [1 - cosine / tokens for cosine in total]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_plain_loops_and_the_lowest_go(tmp_path, rows, family):
    folder = make_model(tmp_path / "m", family, blocks=5)
    summary = prunus.drop(folder, tmp_path / "out", recipe(rows, "2"))
    expected = influence_by_hand(folder, rows)
    assert summary.scores == pytest.approx(expected, abs=1e-5)
    assert summary.blocks_removed == sorted(sorted(range(5), key=expected.__getitem__)[:2])
    (step,) = Checkpoint(tmp_path / "out").manifest.data["history"]
    assert step["scores"] == summary.scores and len(step["scores"]) == 5
    assert step["blocks_removed"] == summary.blocks_removed
    assert DropRecipe.from_json(step["recipe"]) == recipe(rows, "2")
    assert step["source"]["checksum"] == Checkpoint(folder).checksum()
    assert step["calibration"]["tokens"] == 129


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_block_that_does_nothing_scores_zero_and_goes_without_a_trace(tmp_path, rows, index):
    folder = make_model(tmp_path / "m", blocks=4)
    tensors = load_file(folder / "model.safetensors")
    for name in (f"model.layers.{index}.self_attn.o_proj.weight", f"model.layers.{index}.mlp.down_proj.weight"):
        tensors[name].zero_()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    summary = prunus.drop(folder, tmp_path / "out", recipe(rows, "1"))
    assert summary.blocks_removed == [index]
    assert summary.scores[index] == pytest.approx(0, abs=1e-6)
    assert min(score for i, score in enumerate(summary.scores) if i != index) > 0.01
    ids = torch.tensor(random_rows(2, 30))
    logits = [AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (folder, tmp_path / "out")]
    torch.testing.assert_close(logits[0], logits[1])


def without_blocks(folder, removed):
    """Blocks taken out of transformers' model in memory; no cache, so layer_idx does not matter."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    model.model.layers = torch.nn.ModuleList(b for i, b in enumerate(model.model.layers) if i not in removed)
    model.config.num_hidden_layers = len(model.model.layers)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["1,3", "0,", "4,"])
@pytest.mark.parametrize("family", FAMILIES)
def test_result_computes_the_same_without_the_blocks_with_and_without_cache(tmp_path, family, blocks):
    folder = make_model(tmp_path / "m", family, blocks=5, tied=family == "qwen3")
    asked = DropRecipe(blocks=blocks)
    prunus.drop(folder, tmp_path / "out", asked)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor(random_rows(2, 12))
    assert torch.equal(
        model(ids, use_cache=False).logits, without_blocks(folder, asked.indices)(ids, use_cache=False).logits
    )
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    with_cache = model.generate(ids, use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **settings))
    assert [block.self_attn.layer_idx for block in model.model.layers] == list(range(5 - asked.count(5)))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
@pytest.mark.parametrize("explicit", [True, False])
def test_kinds_of_attention_stay_with_their_blocks(tmp_path, family, explicit):
    settings = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    folder = make_model(tmp_path / "m", family, blocks=6, **settings)
    if not explicit:  # older files say only where sliding windows begin
        config = json.loads((folder / "config.json").read_text())
        del config["layer_types"]
        (folder / "config.json").write_text(json.dumps(config))
    prunus.drop(folder, tmp_path / "out", DropRecipe(blocks="1,4"))
    types = Checkpoint(tmp_path / "out").config.layer_types
    assert types == ["full_attention"] * 2 + ["sliding_attention"] * 2
    ids = torch.tensor(random_rows(2, 30))
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    reference = without_blocks(folder, (1, 4))
    reference.config.layer_types = reference.model.config.layer_types = types
    assert torch.equal(model(ids, use_cache=False).logits, reference(ids, use_cache=False).logits)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_everything_that_stays_is_bit_for_bit_the_same(tmp_path, dtype):
    folder = make_model(tmp_path / "m", "qwen2", blocks=4, dtype=dtype, tied=True)
    prunus.drop(folder, tmp_path / "out", DropRecipe(blocks="1,2"))
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert "lm_head.weight" not in after
    renamed = {n.replace("layers.3.", "layers.1."): t for n, t in before.items() if ".1." not in n and ".2." not in n}
    assert renamed.keys() == after.keys()
    assert all(torch.equal(after[n].view(torch.uint8), t.view(torch.uint8)) for n, t in renamed.items())
    old, new = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path / "out"))
    changed = {key for key in old if old[key] != new[key]}
    assert changed <= {"num_hidden_layers", "layer_types", "max_window_layers"} and old.keys() == new.keys()
    assert new["num_hidden_layers"] == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "out"]


def test_cosine_is_of_float32_and_never_outside_its_range():
    big = torch.full((1, 2, 400), 300.0, dtype=torch.float16)  # the dot product overflows half precision
    assert block_influence(big, big).abs().max() < 1e-6
    assert (block_influence(big, -big) - 2).abs().max() < 1e-6
    generator = torch.Generator().manual_seed(0)
    many = torch.randn(10, 100, 7, generator=generator)
    same = block_influence(many, 3 * many)
    assert same.min() >= 0 and same.max() < 1e-6
    torch.testing.assert_close(
        block_influence(torch.tensor([[1.0, 0]]), torch.tensor([[1.0, 1]])), 1 - torch.tensor([0.5]).sqrt()
    )


@pytest.mark.slow
def test_prune_after_drop_accumulates(tmp_path, rows):
    folder = make_model(tmp_path / "m", blocks=4)
    prunus.drop(folder, tmp_path / "a", recipe(rows, "1"))
    prunus.prune(tmp_path / "a", tmp_path / "b", PruneRecipe(method="magnitude", sparsity=0.5))
    history = Checkpoint(tmp_path / "b").manifest.history
    assert [step.action for step in history] == ["drop", "prune"]
    assert len(history[1].sparsity) == 21
    assert not (tmp_path / "b" / "calibration.jsonl").exists()


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ("3", "the model has 3 blocks, of which at most 2 can be removed, not 3"),
        ("7", "at most 2 can be removed, not 7"),
        ("0,1,2", "at most 2 can be removed, not 3"),
        ("1,3", "block 3 does not exist; the model has blocks 0 to 2"),
    ],
)
def test_impossible_blocks_are_refused(tmp_path, rows, blocks, words):
    folder = make_model(tmp_path / "m")
    for attempt in (
        lambda: prunus.plan(folder, recipe(rows, blocks), tmp_path / "out"),
        lambda: prunus.drop(folder, tmp_path / "out", recipe(rows, blocks)),
    ):
        with pytest.raises(PrunusError, match=words):
            attempt()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "rows.jsonl"]


def test_outputs_that_overflow_are_refused_and_leave_nothing(tmp_path, rows):
    folder = make_model(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"] *= 1e38
    tensors["model.layers.1.mlp.up_proj.weight"] *= 1e38
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PrunusError, match="block 1: its output holds NaN or infinity"):
        prunus.drop(folder, tmp_path / "out", recipe(rows, "1"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "rows.jsonl"]


def test_dry_run_says_what_would_go_and_writes_nothing(tmp_path, rows):
    folder = make_model(tmp_path / "m")
    said = prunus.plan(folder, recipe(rows, "1"), tmp_path / "out")
    assert said.would_remove == "the 1 of 3 blocks that shortgpt chooses"
    assert said.calibration.endswith("5 sequences, 129 tokens") and said.blocks == 2
    said = prunus.plan(folder, recipe("nowhere", "0,2"), tmp_path / "out")
    assert said.would_remove == "blocks 0, 2" and said.calibration == "none needed"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "rows.jsonl"]
