"""Depth methods against brute force on transformers' own models, and what holds for every one of them."""

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES, make_model, random_rows
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.writer import Partial
from prunus.errors import PrunusError
from prunus.pruning.depth import DEPTH_METHODS
from prunus.pruning.depth.choice import KeptBlocks, Mix
from prunus.pruning.depth.laco import merged
from prunus.recipes import DropRecipe

LENGTHS = (40, 3, 40, 17, 1)
SEED_WHERE_GREEDY_DIFFERS = 1
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def rows():
    return [row[:length] for row, length in zip(random_rows(5, 40), LENGTHS, strict=True)]


@pytest.fixture
def file(tmp_path, rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
    return path


MERGE = {"laco": {"merge": 2}}


def recipe(file, method, **changes):
    own = {"threshold": -1.0} if method == "laco" else {}
    return DropRecipe(**{"method": method, "calibration": str(file), "sequences": 5, **own} | changes)


def load(folder) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def only(folder, kept) -> Any:
    """transformers' model with some of its blocks."""
    model = load(folder)
    model.model.layers = torch.nn.ModuleList(model.model.layers[index] for index in kept)
    model.config.num_hidden_layers = len(kept)
    return model


@torch.inference_mode()
def nats_per_token(model, rows):
    total, count = 0.0, 0
    for ids in rows:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
        for position in range(len(ids) - 1):
            total -= logits[position].log_softmax(-1)[ids[position + 1]].item()
            count += 1
    return total / count


@torch.inference_mode()
def last_states(model, rows):
    return [model.model(torch.tensor([ids]), use_cache=False).last_hidden_state[0].double() for ids in rows]


def angle(a, b):
    return math.acos(max(-1, min(1, (a @ b / (a.norm() * b.norm())).item()))) / math.pi


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_angular_is_the_turn_of_the_last_token_across_a_run(tmp_path, file, rows, family, count):
    folder = make_model(tmp_path / "m", family, blocks=5)
    model = load(folder)
    outputs: list[list[torch.Tensor]] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda _m, seen, output: outputs[-1].extend([seen[0][0, -1], output[0, -1]]))
    for ids in rows:
        outputs.append([])
        with torch.inference_mode():
            model(torch.tensor([ids]))
    borders = [[seen[0].double(), *(state.double() for state in seen[1::2])] for seen in outputs]
    expected = [sum(angle(b[at], b[at + count]) for b in borders) / 5 for at in range(5 - count + 1)]
    summary = prunus.drop(folder, tmp_path / "out", recipe(file, "angular", blocks=str(count)))
    assert summary.scores == pytest.approx(expected, abs=1e-4)
    first = min(range(len(expected)), key=expected.__getitem__)
    assert summary.blocks_removed == list(range(first, first + count))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_sleb_is_greedy_on_the_likelihood_of_what_is_left(tmp_path, file, rows, family):
    folder = make_model(tmp_path / "m", family, blocks=6, tied=family == "qwen2")
    live, losses = list(range(6)), []
    for _ in range(3):
        trial = {i: nats_per_token(only(folder, [k for k in live if k != i]), rows) for i in live[1:-1]}
        worst = min(trial, key=trial.__getitem__)
        live.remove(worst)
        losses.append(trial[worst])
    summary = prunus.drop(folder, tmp_path / "out", recipe(file, "sleb", blocks="3"))
    assert summary.scores == pytest.approx(losses, abs=1e-5)
    assert summary.blocks_removed == sorted(set(range(6)) - set(live))


@pytest.mark.slow
def test_sleb_looks_again_after_each_removal(tmp_path, file, rows):
    """The model is one on which the two blocks that hurt least alone are not the two that greedy search removes."""
    folder = make_model(tmp_path / "m", blocks=6, seed=SEED_WHERE_GREEDY_DIFFERS)
    once = {i: nats_per_token(only(folder, [k for k in range(6) if k != i]), rows) for i in range(1, 5)}
    one_shot = sorted(sorted(once, key=once.__getitem__)[:2])
    summary = prunus.drop(folder, tmp_path / "out", recipe(file, "sleb", blocks="2"))
    assert summary.blocks_removed != one_shot
    assert min(once, key=once.__getitem__) in summary.blocks_removed
    loss = nats_per_token(only(folder, [k for k in range(6) if k not in one_shot]), rows)
    assert summary.scores[1] < loss


@pytest.mark.slow
def test_sleb_keeps_first_and_last_block(tmp_path, file):
    folder = make_model(tmp_path / "m", blocks=4)
    assert prunus.drop(folder, tmp_path / "a", recipe(file, "sleb", blocks="2")).blocks_removed == [1, 2]
    with pytest.raises(PrunusError, match="it can remove 2 at most, not 3"):
        prunus.drop(folder, tmp_path / "b", recipe(file, "sleb", blocks="3"))
    assert not (tmp_path / "b").exists() and not (tmp_path / "b.partial").exists()


def laco_by_hand(folder, rows, settings):
    """The algorithm on whole state dicts of transformers' model; returns the final model and the cosines."""
    model, original = load(folder), last_states(load(folder), rows)
    blocks = list(model.model.layers)
    total, left, scores = len(blocks), settings["count"], []
    place = total - 1 - min(settings["merge"], left)
    while place >= 0 and left:
        width = min(settings["merge"], left, len(blocks) - 1 - place)
        states = [{n: t.clone() for n, t in block.state_dict().items()} for block in blocks]
        base = dict(states[place])
        for name in base:
            if name.split(".")[-2] not in LINEARS or not name.endswith("weight"):
                continue
            result = base[name].clone()
            for k in range(1, width + 1):
                result += states[place + k][name] - states[place][name]
            base[name] = result
        trial = load(folder)
        new_blocks = [trial.model.layers[i] for i in range(len(blocks) - width)]
        kept_states = [*states[:place], base, *states[place + width + 1 :]]
        for block, state in zip(new_blocks, kept_states, strict=True):
            block.load_state_dict(state)
        trial.model.layers = torch.nn.ModuleList(new_blocks)
        trial.config.num_hidden_layers = len(new_blocks)
        flat = zip(original, last_states(trial, rows), strict=True)
        cosine = sum(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0).item() for a, b in flat) / len(rows)
        if cosine > settings["threshold"]:
            blocks, left = new_blocks, left - width
            scores.append(cosine)
            place = min(place - settings["interval"], len(blocks) - 1 - min(settings["merge"], max(1, left)))
        else:
            place -= 1
    return blocks, scores, left


@pytest.mark.slow
@pytest.mark.parametrize(("merge", "interval", "threshold"), [(1, 1, -1.0), (2, 2, -1.0), (3, 1, -1.0), (2, 1, 0.35)])
def test_laco_is_the_algorithm_on_whole_models(tmp_path, file, rows, merge, interval, threshold):
    folder = make_model(tmp_path / "m", "qwen3", blocks=7)
    settings = {"merge": merge, "interval": interval, "threshold": threshold}
    blocks, scores, left = laco_by_hand(folder, rows, settings | {"count": 4})
    asked = recipe(file, "laco", blocks="4", **settings)
    if left == 4:
        with pytest.raises(PrunusError, match="lower --threshold"):
            prunus.drop(folder, tmp_path / "out", asked)
        return
    summary = prunus.drop(folder, tmp_path / "out", asked)
    assert summary.scores == pytest.approx(scores, abs=1e-4)
    assert summary.blocks == len(blocks) == 7 - 4 + left
    assert bool(summary.warnings) == bool(left)
    ours = load(tmp_path / "out").model.layers
    for block, expected in zip(ours, blocks, strict=True):
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(block.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_laco_adds_each_folded_blocks_difference_to_the_first():
    pair, triple = [Mix.of(3), Mix.of(4)], [Mix.of(3), Mix.of(4), Mix.of(5)]
    assert merged(pair) == Mix(3, ((4, 1.0),))
    assert merged(triple) == Mix(3, ((3, -1.0), (4, 1.0), (5, 1.0)))
    again = merged([Mix.of(2), merged(triple), Mix.of(6)])
    assert again == Mix(2, ((2, -1.0), (3, -1.0), (4, 1.0), (5, 1.0), (6, 1.0)))


def test_a_choice_survives_its_journal():
    choice = KeptBlocks([Mix.of(0), Mix(2, ((2, -1.0), (3, 2.0)))], [0.5], ["so"])
    assert KeptBlocks.restored(**json.loads(json.dumps(choice._asdict()))) == choice
    assert choice.removed(4) == [1, 3]


@pytest.mark.slow
def test_tail_needs_no_data(tmp_path):
    folder = make_model(tmp_path / "m", blocks=5)
    summary = prunus.drop(folder, tmp_path / "out", DropRecipe(method="tail", blocks="2", calibration="nowhere"))
    assert summary.blocks_removed == [3, 4] and summary.scores == []
    (step,) = Checkpoint(tmp_path / "out").manifest.data["history"]
    assert step["calibration"] is None


@pytest.mark.slow
@pytest.mark.parametrize("name", DEPTH_METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_gives_a_model_that_generates_the_same_with_and_without_cache(tmp_path, file, name, family):
    folder = make_model(tmp_path / "m", family, blocks=6, tied=family == "qwen3")
    summary = prunus.drop(folder, tmp_path / "out", recipe(file, name, blocks="2", **MERGE.get(name, {})))
    assert summary.blocks == 4 and len(summary.blocks_removed) == 2
    model = load(tmp_path / "out")
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    ids = torch.tensor(random_rows(2, 12))
    with_cache = model.generate(ids, use_cache=True, **settings)
    assert torch.equal(with_cache, model.generate(ids, use_cache=False, **settings))
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert all(torch.equal(before[n], after[n]) for n in before if "layers." not in n)


@pytest.mark.slow
@pytest.mark.parametrize("name", DEPTH_METHODS)
def test_every_method_writes_the_same_bytes_after_an_interruption(tmp_path, file, name, monkeypatch):
    folder = make_model(tmp_path / "m", blocks=6)
    asked = recipe(file, name, blocks="2", **MERGE.get(name, {}))
    prunus.drop(folder, tmp_path / "whole", asked)
    write_block = Partial.write_block

    def stopping(self, *arguments):
        if len(self.records) == 2:
            raise KeyboardInterrupt
        write_block(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Partial, "write_block", stopping)
        with pytest.raises(KeyboardInterrupt):
            prunus.drop(folder, tmp_path / "out", asked)
    monkeypatch.setattr("prunus.pruning.drop.choose_blocks", None)
    prunus.drop(folder, tmp_path / "out", asked)
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes()


@pytest.mark.slow
def test_laco_that_stops_short_says_so_and_can_go_on(tmp_path, file, rows, monkeypatch):
    folder = make_model(tmp_path / "m", blocks=6)
    cosines = prunus.drop(folder, tmp_path / "all", recipe(file, "laco", blocks="3")).scores
    asked = recipe(file, "laco", blocks="3", threshold=sorted(cosines)[-1] - 1e-3)
    summary = prunus.drop(folder, tmp_path / "whole", asked)
    assert 3 < summary.blocks == Checkpoint(tmp_path / "whole").blocks
    assert summary.warnings[0].startswith(f"laco removed {6 - summary.blocks} of 3 blocks")
    finish = Partial.finish
    monkeypatch.setattr(Partial, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prunus.drop(folder, tmp_path / "out", asked)
    monkeypatch.setattr(Partial, "finish", finish)
    prunus.drop(folder, tmp_path / "out", asked)
    name = "model.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


@pytest.mark.parametrize(("share", "blocks", "count"), [(0.2, 36, 7), (0.2, 28, 6), (0.2, 6, 1), (0.25, 6, 2)])
def test_match_sparsity_is_the_nearest_number_of_blocks(share, blocks, count):
    assert DropRecipe(match_sparsity=share).count(blocks) == count
    assert abs(count / blocks - share) == min(abs(n / blocks - share) for n in range(blocks))


def test_match_sparsity_end_to_end_and_its_errors(tmp_path):
    folder = make_model(tmp_path / "m", blocks=5)
    summary = prunus.drop(folder, tmp_path / "out", DropRecipe(method="tail", match_sparsity=0.42))
    assert summary.blocks_removed == [3, 4]
    with pytest.raises(PrunusError, match="nearest to 0 of 5 blocks"):
        prunus.drop(folder, tmp_path / "b", DropRecipe(method="tail", match_sparsity=0.05))
    with pytest.raises(PrunusError, match="both set the number of blocks"):
        DropRecipe(blocks="1", match_sparsity=0.2)
    with pytest.raises(PrunusError, match=r"must lie in \(0, 1\), not 1.2"):
        DropRecipe(match_sparsity=1.2)
    with pytest.raises(PrunusError, match="it is a cosine"):
        DropRecipe(method="laco", threshold=1.5)
    with pytest.raises(PrunusError, match="merge belongs to method laco, not to shortgpt"):
        DropRecipe(merge=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "out"]
