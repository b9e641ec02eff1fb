"""Influences: streamed gradients against autograd on the whole model, DataInf by definition, sketches, stability."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import spearmanr
from tiny_models import FAMILIES, LINEARS, make_model, random_rows, runner_of
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.errors import PrunusError
from prunus.pruning.allocation import layerif
from prunus.pruning.allocation.layerif import chain_only
from prunus.pruning.calibration import gradients
from prunus.pruning.calibration import hidden_states as hidden
from prunus.pruning.calibration import hidden_states as portions_module
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.calibration.gradients import GradientModel, signs, sketches
from prunus.recipes import PruneRecipe
from prunus.reporting.terminal import allocation_table


def whole_model_gradients(folder, sequences):
    """For each block and Linear the flattened weight gradient of every sequence's mean loss, by transformers alone."""
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found = [{name: [] for name in LINEARS} for _ in network.model.layers]
    for ids in sequences:
        network.zero_grad()
        tokens = torch.tensor([ids])
        network(input_ids=tokens, labels=tokens).loss.backward()
        for index, block in enumerate(network.model.layers):
            for name in LINEARS:
                found[index][name].append(block.get_submodule(name).weight.grad.flatten().clone())
    return [{name: torch.stack(rows) for name, rows in block.items()} for block in found]


def exact(_block, _linear, outputs, inputs):
    """Projections that change nothing: the sketch is the gradient."""
    return torch.eye(outputs), torch.eye(inputs)


def model_of(folder):
    source = Checkpoint(folder)
    return GradientModel(source, runner_of(source), [LINEARS] * source.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("portions", ["at once", "few at a time"])
@pytest.mark.parametrize("family", FAMILIES)
def test_streamed_gradients_are_those_of_the_whole_model(tmp_path, monkeypatch, family, portions):
    folder = make_model(tmp_path / "m", family, blocks=2, tied=family == "llama")
    lengths = [30, 2, 17, 30, 9]
    sequences = [row[:n] for row, n in zip(random_rows(5, 30), lengths, strict=True)]
    if portions == "few at a time":
        monkeypatch.setattr(portions_module, "free_memory", lambda: 0)
        monkeypatch.setattr(hidden, "BATCH_TOKENS", 30)
        monkeypatch.setattr(gradients, "LOGIT_TOKENS", 7)
    found = sketches(model_of(folder), sequences, exact)
    expected = whole_model_gradients(folder, sequences)
    for row, wanted in zip(found, expected, strict=True):
        for name in LINEARS:
            size = wanted[name].abs().max().item()
            torch.testing.assert_close(row[name], wanted[name], rtol=1e-3, atol=1e-5 * size)


def test_sliding_windows_and_other_dtypes_go_through(tmp_path):
    folder = make_model(
        tmp_path / "m", "qwen2", blocks=2, use_sliding_window=True, sliding_window=8, max_window_layers=0
    )
    sequences = random_rows(3, 20)
    found, expected = sketches(model_of(folder), sequences, exact), whole_model_gradients(folder, sequences)
    torch.testing.assert_close(found[0]["mlp.up_proj"], expected[0]["mlp.up_proj"], rtol=1e-3, atol=1e-5)


def test_block_scores_by_plain_loops():
    tables = [{n: torch.randn(8, 5, generator=torch.Generator().manual_seed(s)) for s, n in enumerate("abc")}]
    train, validation = [5, 0, 3, 1], [2, 7]
    expected = 0.0
    for k in train:
        total = 0.0
        for name in "ac":
            rows = tables[0][name].tolist()
            mean = [(rows[2][x] + rows[7][x]) / 2 for x in range(5)]
            total += sum(g * v for g, v in zip(rows[k], mean, strict=True))
        expected += max(0.0, total)
    found = layerif.block_scores(tables, [["a", "c"]], train, validation)
    assert found == pytest.approx([expected])


def test_agreement():
    assert layerif.agreement([1, 2, 3, 9], [0.1, 0.2, 0.7, 0.9]) == pytest.approx(1)
    assert layerif.agreement([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert layerif.agreement([1, 1, 1], [3, 2, 1]) == 0


@pytest.mark.slow
def test_sketches_rank_like_exact_gradients(tmp_path):
    folder = make_model(tmp_path / "m", "llama", blocks=4, seed=1)
    chances = 1 / torch.arange(1, 366) ** 1.2  # like words: some tokens are frequent, so that gradients have a signal
    generator = torch.Generator().manual_seed(1)
    sequences = (torch.multinomial(chances.expand(60, -1), 48, True, generator=generator) + 3).tolist()
    model = model_of(folder)
    full, sketched = whole_model_gradients(folder, sequences), sketches(model, sequences, signs(1, model.source))
    scores = [
        [layerif.block_scores(table, [[name]] * 4, range(45), range(45, 60)) for name in LINEARS]
        for table in (full, sketched)
    ]
    assert np.asarray(spearmanr(np.ravel(scores[0]), np.ravel(scores[1]))[0]) >= 0.9


def test_sketches_are_the_same_for_a_seed_and_keep_inner_products():
    source = Checkpoint(resolve("tiny"))
    left, right = signs(3, source)(1, "mlp.up_proj", 50, 40)
    again, _ = signs(3, source)(1, "mlp.up_proj", 50, 40)
    other, _ = signs(3, source)(0, "mlp.up_proj", 50, 40)
    assert torch.equal(left, again) and not torch.equal(left, other)
    gradient = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    products = []
    for seed in range(200):
        left, right = signs(seed, source)(0, "mlp.up_proj", 50, 40)
        products.append((left.T @ gradient @ right).square().sum().item())
    assert np.mean(products) == pytest.approx(gradient.square().sum().item(), rel=0.05)


def test_smoothing_is_a_local_polynomial_fit():
    values = np.random.default_rng(1).random(11)
    for window, order in ((5, 2), (7, 3)):
        half = window // 2
        expected = []
        for i in range(11):
            begin = min(max(i - half, 0), 11 - window)
            places = np.arange(begin, begin + window)
            expected.append(np.polyval(np.polyfit(places - i, values[places], order), 0))
        assert layerif.smoothed(values.tolist(), window, order) == pytest.approx(expected)
    assert layerif.smoothed([1.0, 5.0], 5, 2) == [1.0, 5.0]
    assert layerif.smoothed([1.0, 5.0, 2.0, 7.0], 7, 3) == pytest.approx([1, 5, 2, 7])  # three points, a parabola


def study_by_hand(influences, sizes, target):
    """The rule of the study's code (e281a0d, wanda/lib/influence_helper.py) in plain loops: more influence, less."""
    size = [abs(value) for value in influences]
    share = [(value - min(size)) / (max(size) - min(size)) for value in size]
    fitted = list(share)
    if len(share) >= 5:
        for i in range(len(share)):  # a parabola through five neighbours, at the ends through the first or last five
            begin = min(max(i - 2, 0), len(share) - 5)
            places = np.arange(begin, begin + 5)
            fitted[i] = float(np.polyval(np.polyfit(places - i, np.asarray(share)[places], 2), 0))
    clipped = [min(1.0, max(0.0, value)) for value in fitted]
    low, high = min(clipped), max(clipped)
    wanted = [(1 - (value - low) / (high - low + 1e-8)) * (0.40 - 0.05) + 0.05 for value in clipped]
    scale = target * sum(sizes) / (sum(w * n for w, n in zip(wanted, sizes, strict=True)) + 1e-8)
    return [min(1.0, max(0.0, scale * value)) for value in wanted]


@pytest.mark.parametrize("target", [0.1, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("blocks", [2, 4, 5, 28])
def test_the_studys_map_as_its_code_runs_it(blocks, target):
    rng = np.random.default_rng(blocks)
    scores, sizes = rng.lognormal(size=blocks).tolist(), rng.integers(100, 900, blocks).tolist()
    expected = study_by_hand(scores, sizes, target)
    recipe = PruneRecipe(allocation="layerif", sparsity=target)
    found = layerif.allocate_reference(scores, sizes, recipe)
    assert found == pytest.approx(expected, rel=1e-9)
    kept = layerif.allocate(scores, sizes, recipe)  # the same, where nothing is clipped
    assert np.average(kept, weights=sizes) == pytest.approx(target)
    if max(expected) < 0.99:
        assert kept == pytest.approx(expected, rel=1e-6)
    else:
        assert np.average(found, weights=sizes) < target


def test_more_influence_less_sparsity():
    recipe = PruneRecipe(allocation="layerif", sparsity=0.2)
    found = layerif.allocate([-1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [100] * 6, recipe)
    assert max(found) / min(found) == pytest.approx(0.40 / 0.05, rel=1e-6)
    assert all(a > b for a, b in pairwise(found))
    assert sum(found) / 6 == pytest.approx(0.2)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("influence")
    make_model(folder / "m", "qwen3", blocks=4)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in random_rows(16, 20)))
    (folder / "few.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in random_rows(3, 20)))
    return folder


def recipe(place, **changes):
    settings: dict[str, Any] = {
        "calibration": str(place / "rows.jsonl"),
        "influence_train": 12,
        "influence_validation": 4,
        "allocation": "layerif",
    }
    return PruneRecipe(**settings | changes)


@pytest.mark.slow
def test_attention_and_mlp_each_meet_the_target(place):
    data = prunus.allocate(place / "m", recipe(place, sparsity=0.3))
    for part in ("attention", "mlp"):
        assert sum(row.parts[part] or 0 for row in data.blocks) / 4 == pytest.approx(0.3)
        assert len(data.evidence["scores"][part]) == 4
    assert data.evidence["details"]["train"] == 12
    assert data.evidence["details"]["validation"] == 4
    only = prunus.allocate(place / "m", recipe(place, sparsity=0.3, scope="mlp"))
    assert list(only.evidence["scores"]) == ["mlp"]
    assert only.evidence["scores"]["mlp"] == pytest.approx(data.evidence["scores"]["mlp"])


@pytest.mark.slow
def test_noise_is_called_noise(place, monkeypatch):
    def noisy(data):
        return any("these scores are noise" in warning for warning in data.warnings)

    asked = recipe(place)
    data = prunus.allocate(place / "m", asked)
    assert noisy(data) == any(value < 0.5 for value in data.evidence["details"]["split_half_spearman"].values())
    monkeypatch.setattr("prunus.pruning.allocation.layerif.agreement", lambda *_: 0.49)
    shown = prunus.allocate(place / "m", asked)
    assert noisy(shown)
    with (console := Console(width=200)).capture() as printed:
        console.print(allocation_table(shown))
    assert "scores from two halves of the data: 0.49" in printed.get()
    monkeypatch.setattr("prunus.pruning.allocation.layerif.agreement", lambda *_: 0.51)
    assert not noisy(prunus.allocate(place / "m", asked))


def test_scores_of_a_file_for_attention_and_mlp(place, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"attention": [1, 2, 3, 4], "mlp": [4, 3, 2, 1]}')
    rows = prunus.allocate(place / "m", recipe(place, sparsity=0.2, scores=str(path))).blocks
    assert [row.parts["attention"] for row in rows] == pytest.approx([row.parts["mlp"] for row in reversed(rows)])
    assert (rows[0].parts["attention"] or 0) > (rows[3].parts["attention"] or 0)  # more influence, less sparsity
    path.write_text('{"attention": [1, 2, 3, 4]}')
    with pytest.raises(PrunusError, match="has no list 'mlp'"):
        prunus.allocate(place / "m", recipe(place, scores=str(path)))


def by_sample(rows):
    return [dict(zip(STUDY_KEYS, row, strict=True)) for row in rows]


STUDY_KEYS = [f"layer_{i}_{part}" for i in range(4) for part in ("attention", "mlp")]
SAMPLES = by_sample([[1, -2, 3, 4.5, 0, 1, -1, 2], [2, 2, -9, 0.5, 1, 1, -1, 0]])
SUMS = {"attention": [3, 3, 1, 0], "mlp": [2, 5, 2, 2]}  # positive scores, over samples


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (SAMPLES, SUMS),
        ({"a": SAMPLES[0], "b": SAMPLES[1]}, SUMS),
        ([{"sample_id": 7 + i, "scores": scores} for i, scores in enumerate(SAMPLES)], SUMS),
        (SAMPLES[0], {"attention": [1, 3, 0, -1], "mlp": [-2, 4.5, 1, 2]}),  # sums already
    ],
)
def test_influences_by_sample_as_the_study_stores_them(place, tmp_path, data, expected):
    path = tmp_path / "influences.json"
    path.write_text(json.dumps(data))
    evidence = prunus.allocate(place / "m", recipe(place, scores=str(path))).evidence
    assert evidence["scores"] == expected
    assert evidence["settings"] == {"file": "influences.json", "samples": 1 if data is SAMPLES[0] else 2}
    only = prunus.allocate(place / "m", recipe(place, scores=str(path), scope="mlp")).evidence
    assert only["scores"] == {"mlp": expected["mlp"]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            [SAMPLES[0], {k: v for k, v in SAMPLES[1].items() if k != "layer_2_mlp"}],
            "'layer_2_mlp' of sample 1 is missing",
        ),
        (
            [SAMPLES[0] | {"layer_4_mlp": 1}],
            "unknown key 'layer_4_mlp'; keys of this model are layer_0_attention to layer_3_mlp",
        ),
        ([SAMPLES[0] | {"layer_1_mpl": 1}], "sample 0 has the unknown key 'layer_1_mpl'"),
        ({"a": SAMPLES[0], "b": SAMPLES[1] | {"layer_1_mlp": float("nan")}}, "'layer_1_mlp' of sample b is nan"),
        ([SAMPLES[0] | {"layer_1_mlp": "2"}], "'layer_1_mlp' of sample 0 is '2'"),
        ([SAMPLES[0], 3], "sample 1 is not an object with scores"),
        ([{"sample_id": 3, "scores": SAMPLES[0]}] * 2, "sample 3 occurs twice"),
        ([{"sample_id": 3, "score": SAMPLES[0]}], "sample 0 has the unknown key 'sample_id'"),
        ([], "has 0 scores for 'attention'"),
    ],
)
def test_influences_by_sample_that_do_not_fit(place, tmp_path, data, words):
    path = tmp_path / "influences.json"
    path.write_text(json.dumps(data))
    with pytest.raises(PrunusError, match=words):
        prunus.allocate(place / "m", recipe(place, scores=str(path)))


def test_influences_by_sample_are_for_attention_and_mlp(place, tmp_path):
    path = tmp_path / "influences.json"
    path.write_text(json.dumps(SAMPLES))
    with pytest.raises(PrunusError, match="scores of attention and mlp, which allocation layerif uses, not owl"):
        prunus.allocate(place / "m", PruneRecipe(allocation="owl", scores=str(path)))


def test_too_few_sequences(place):
    with pytest.raises(PrunusError, match="3 sequences of two tokens or more; influences need 4"):
        prunus.allocate(place / "m", recipe(place, calibration=str(place / "few.jsonl")))


@pytest.mark.parametrize("prompts", [None, [3] * 8, [3, 9, 11, 2, 8, 1, 9, 20]])
def test_influences_see_the_first_tokens_only(tmp_path, monkeypatch, prompts):
    """Of token ids and traces too; what is cut away has no effect on the scores, and it is said."""
    make_model(tmp_path / "m", "llama", blocks=2)
    monkeypatch.setattr("prunus.pruning.allocation.layerif.INFLUENCE_TOKENS", 10)
    found = {}
    for name, rows in (("whole", random_rows(8, 30)), ("cut", [row[:10] for row in random_rows(8, 30)])):
        lines: list[dict[str, Any]] = [{"token_ids": ids} for ids in rows]
        for line, prompt in zip(lines, prompts or (), strict=False):
            line["prompt_tokens"] = min(prompt, len(line["token_ids"]))
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        asked = recipe(tmp_path, calibration=str(tmp_path / f"{name}.jsonl"), influence_train=5, influence_validation=3)
        found[name] = prunus.allocate(tmp_path / "m", asked)
    assert found["whole"].evidence["scores"] == found["cut"].evidence["scores"]
    (said,) = [text for text in found["whole"].warnings if "cut to 10 tokens" in text]
    assert said.startswith("influences of allocation layerif") and ": 8 of 8 sequences" in said
    lost = 0 if prompts is None else sum(prompt >= 10 for prompt in prompts)
    details = found["whole"].evidence["details"]
    assert details["train"] + details["validation"] == 8 - lost


def test_only_the_chain_counts_in_the_loss_where_prompts_are_known(tmp_path):
    folder = make_model(tmp_path / "m", "llama", blocks=2)
    lengths, prompts = [20, 15, 20, 8], [0, 5, 19, 3]
    sequences = [ids[:length] for ids, length in zip(random_rows(4, 20), lengths, strict=True)]
    counted = [[token >= prompt for token in range(length)] for prompt, length in zip(prompts, lengths, strict=True)]
    assert chain_only(Calibration(sequences, "", [], prompts)) == counted
    assert chain_only(Calibration(sequences, "", [])) is None
    found = sketches(model_of(folder), sequences, exact, counted)
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for row, (ids, prompt) in enumerate(zip(sequences, prompts, strict=True)):
        network.zero_grad()
        tokens = torch.tensor([ids])
        labels = tokens.clone()
        labels[:, :prompt] = -100
        network(input_ids=tokens, labels=labels).loss.backward()
        wanted = network.model.layers[0].mlp.up_proj.weight.grad.flatten()
        torch.testing.assert_close(
            found[0]["mlp.up_proj"][row], wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item()
        )
