"""Row budgets: gradients against autograd on the whole model, budgets by plain arithmetic."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from tiny_models import LINEARS, make_model, random_rows
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.writer import Partial
from prunus.errors import PrunusError
from prunus.pruning import pipeline
from prunus.pruning.calibration import hidden_states as hidden
from prunus.pruning.calibration import hidden_states as portions_module
from prunus.pruning.methods import wanda
from prunus.recipes import PruneRecipe

COUNT, LENGTH = 6, 24


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"token_ids": {ids}}}\n' for ids in random_rows(COUNT, LENGTH)))
    return path


def recipe(rows, **settings):
    return PruneRecipe(calibration=str(rows), samples=COUNT, propagation="dense", **settings)


def whole_model(folder):
    """By transformers alone: per Linear the weight, the norm of its inputs, and the summed squared gradients by its
    outputs."""
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    squares, outputs = {}, {}
    for name, module in network.named_modules():
        if name.removeprefix("model.layers.").partition(".")[2] in LINEARS:

            def see(_module, inputs, output, name=name):
                squares[name] = squares.get(name, 0) + inputs[0].detach().square().sum((0, 1))
                output.register_hook(
                    lambda delta: outputs.__setitem__(name, outputs.get(name, 0) + delta.square().sum((0, 1)))
                )

            module.register_forward_hook(see)
    for ids in random_rows(COUNT, LENGTH):
        tokens = torch.tensor([ids])
        network(input_ids=tokens, labels=tokens).loss.backward()
    dense = {name: network.get_submodule(name).weight.detach() for name in squares}
    return dense, {name: square.sqrt() for name, square in squares.items()}, outputs


def zeros_by_rows(score, counts):
    """True at the counts lowest of every row."""
    found = torch.zeros_like(score, dtype=torch.bool)
    for row, count in enumerate(counts):
        for column in sorted(range(score.shape[1]), key=score[row].tolist().__getitem__)[:count]:
            found[row, column] = True
    return found


def test_an_interrupted_run_finds_its_gradients_again(tmp_path, rows, monkeypatch):
    folder, asked = make_model(tmp_path / "m", blocks=3), recipe(rows, row_power=1.0)
    prunus.prune(folder, tmp_path / "whole", asked)
    write, written = Partial.write_block, []

    def stop(self, index, *arguments):
        if index == 1 and not written:
            written.append(index)
            raise KeyboardInterrupt
        write(self, index, *arguments)

    monkeypatch.setattr(Partial, "write_block", stop)
    with pytest.raises(KeyboardInterrupt):
        prunus.prune(folder, tmp_path / "out", asked)
    monkeypatch.setattr("prunus.pruning.prune_job.square_sums", None)  # must not be needed again
    prunus.prune(folder, tmp_path / "out", asked)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in names:
        if name.endswith(".safetensors"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(("power", "portions"), [(0.25, "at once"), (1.0, "a few at a time")])
def test_rows_keep_by_the_fisher_information_of_their_outputs(tmp_path, rows, monkeypatch, power, portions):
    folder = make_model(tmp_path / "m", "qwen3", blocks=2)
    if portions != "at once":
        monkeypatch.setattr(portions_module, "free_memory", lambda: 0)
        monkeypatch.setattr(pipeline, "check_block_fits", lambda *_: None)  # which would refuse so little memory
        monkeypatch.setattr(hidden, "BATCH_TOKENS", LENGTH)
    prunus.prune(folder, tmp_path / "out", recipe(rows, method="wanda", row_power=power))
    dense, norms, outputs = whole_model(folder)
    pruned = Checkpoint(tmp_path / "out")
    for name, weight in dense.items():
        zero = pruned.read(f"{name}.weight") == 0
        assert zero.sum() == weight.numel() // 2
        share = outputs[name].double() ** power
        kept = (~zero).sum(1).double()
        below = kept < weight.shape[1]
        ratio = kept[below] / share[below]
        assert ((ratio - ratio.mean()).abs() * share[below] <= 1.5).all(), "in proportion, to the weight"
        score = weight.abs() * norms[name]
        assert torch.equal(zero, zeros_by_rows(score, zero.sum(1).tolist()))
    assert not list((tmp_path / "out").glob("gradients*"))


def test_row_budgets_by_hand():
    fisher = torch.tensor([1.0, 2.0, 3.0, 94.0])
    assert wanda.kept_per_row(fisher, 10, 24, 1.0).tolist() == [1, 2, 3, 10]
    assert wanda.kept_per_row(fisher, 10, 24, 0.0).tolist() == [4, 4, 4, 4]
    assert wanda.kept_per_row(fisher, 10, 22, 0.0).tolist() == [5, 5, 4, 4]
    assert wanda.kept_per_row(torch.zeros(3), 4, 6, 1.0).tolist() == [2, 2, 2]
    for zeros in range(41):
        kept = wanda.kept_per_row(fisher, 10, zeros, 0.7)
        assert kept.sum() == 40 - zeros and kept.max() <= 10 and kept.min() >= 0
        assert (kept.diff() >= 0).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "dsnot", "row_power": 1.0}, "row_power belongs to method wanda, not to dsnot"),
        ({"method": "wanda", "row_power": 1.0, "pattern": "2:4"}, "leave row_power out"),
        ({"method": "wanda", "row_power": -1.0}, "row_power must be 0 or more"),
        ({"allocation": "owl", "window": "reference"}, "window belongs to allocation alphapruning"),
    ],
)
def test_options_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(PrunusError, match=message):
        PruneRecipe(**settings)


def test_statistics_hold_no_gradients(tmp_path, rows):
    folder = make_model(tmp_path / "m", blocks=2)
    prunus.stats(folder, tmp_path / "stats", calibration=str(rows), samples=COUNT)
    with pytest.raises(PrunusError, match="holds no gradients, which wanda with row_power needs"):
        prunus.prune(
            folder, tmp_path / "out", PruneRecipe(propagation="dense", row_power=1.0), stats=tmp_path / "stats"
        )


def test_one_token_has_no_gradient(tmp_path):
    folder = make_model(tmp_path / "m", blocks=2)
    (tmp_path / "one.jsonl").write_text('{"token_ids": [7]}\n')
    with pytest.raises(PrunusError, match="no sequence of two tokens or more"):
        prunus.prune(
            folder, tmp_path / "out", PruneRecipe(row_power=1.0, calibration=str(tmp_path / "one.jsonl"), samples=1)
        )


def test_zeros_of_rows_are_counted_exactly():
    from prunus.pruning.masks import zero_lowest_of_rows

    score = torch.randint(0, 4, (9, 31), generator=torch.Generator().manual_seed(0)).float()
    counts = torch.tensor([0, 1, 31, 7, 7, 20, 15, 30, 3])
    pruned = zero_lowest_of_rows(torch.ones(9, 31), score, counts)
    assert torch.equal(pruned == 0, zeros_by_rows(score, counts.tolist()))
    assert Fraction(int((pruned == 0).sum())) == int(counts.sum())
