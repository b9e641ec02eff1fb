"""GBLM, Wanda++ and row budgets: gradients against autograd on the whole model, budgets by plain arithmetic."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from tiny_models import LINEARS, make_model, random_rows, runner_of
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.writer import Partial
from prunus.errors import PrunusError
from prunus.pruning import pipeline
from prunus.pruning.calibration import hidden_states as hidden
from prunus.pruning.calibration import hidden_states as portions_module
from prunus.pruning.calibration.hidden_states import HiddenStates
from prunus.pruning.calibration.propagation import BlockRun, observe
from prunus.pruning.calibration.statistics import InputStats
from prunus.pruning.masks import Target
from prunus.pruning.methods import gblm, wanda
from prunus.pruning.methods.wanda_plus_plus import Repair, repair, with_regional_gradients
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
    """By transformers alone: per Linear the norm of its inputs, the summed squared weight gradients of every sequence,
    and the summed squared gradients by its outputs."""
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    squares, weights, outputs = {}, {}, {}
    for name, module in network.named_modules():
        if name.removeprefix("model.layers.").partition(".")[2] in LINEARS:

            def see(_module, inputs, output, name=name):
                squares[name] = squares.get(name, 0) + inputs[0].detach().square().sum((0, 1))
                output.register_hook(
                    lambda delta: outputs.__setitem__(name, outputs.get(name, 0) + delta.square().sum((0, 1)))
                )

            module.register_forward_hook(see)
    for ids in random_rows(COUNT, LENGTH):
        network.zero_grad()
        tokens = torch.tensor([ids])
        network(input_ids=tokens, labels=tokens).loss.backward()
        for name in squares:
            weights[name] = weights.get(name, 0) + network.get_submodule(name).weight.grad.square()
    dense = {name: network.get_submodule(name).weight.detach() for name in squares}
    return dense, {name: square.sqrt() for name, square in squares.items()}, weights, outputs


def zeros_by_rows(score, counts):
    """True at the counts lowest of every row."""
    found = torch.zeros_like(score, dtype=torch.bool)
    for row, count in enumerate(counts):
        for column in sorted(range(score.shape[1]), key=score[row].tolist().__getitem__)[:count]:
            found[row, column] = True
    return found


@pytest.mark.parametrize("portions", ["at once", "a few at a time"])
def test_gblm_prunes_by_the_gradients_of_the_whole_model(tmp_path, rows, monkeypatch, portions):
    folder = make_model(tmp_path / "m", "qwen3", blocks=2)
    if portions != "at once":
        monkeypatch.setattr(portions_module, "free_memory", lambda: 0)
        monkeypatch.setattr(pipeline, "check_block_fits", lambda *_: None)  # which would refuse so little memory
        monkeypatch.setattr(hidden, "BATCH_TOKENS", LENGTH)
    prunus.prune(folder, tmp_path / "out", recipe(rows, method="gblm", sparsity=0.5))
    dense, norms, weights, _ = whole_model(folder)
    pruned = Checkpoint(tmp_path / "out")
    for name, weight in dense.items():
        score = weight.abs() * (norms[name] / COUNT**0.5 + 100 * weights[name].sqrt())
        expected = zeros_by_rows(score, [weight.shape[1] // 2] * len(weight))
        assert torch.equal(pruned.read(f"{name}.weight") == 0, expected), name
    assert not list((tmp_path / "out").glob("gradients*"))


def test_gradients_change_what_gblm_takes(tmp_path, rows):
    folder = make_model(tmp_path / "m", blocks=2)
    masks = []
    for index, scale in enumerate((0.0, 100.0)):
        prunus.prune(folder, tmp_path / f"{index}", recipe(rows, method="gblm", gradient_scale=scale))
        masks.append(Checkpoint(tmp_path / f"{index}").read("model.layers.1.mlp.up_proj.weight") == 0)
    prunus.prune(folder, tmp_path / "wanda", recipe(rows, method="wanda"))
    wanda = Checkpoint(tmp_path / "wanda").read("model.layers.1.mlp.up_proj.weight") == 0
    assert torch.equal(masks[0], wanda) and not torch.equal(masks[1], wanda)


def test_an_interrupted_run_finds_its_gradients_again(tmp_path, rows, monkeypatch):
    folder, asked = make_model(tmp_path / "m", blocks=3), recipe(rows, method="gblm")
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
    monkeypatch.setattr("prunus.pruning.methods.loss_gradients.save_square_sums", None)  # must not be needed again
    prunus.prune(folder, tmp_path / "out", asked)
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "out").iterdir())
    for name in names:
        if name.endswith(".safetensors"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("power", [0.25, 1.0])
def test_rows_keep_by_the_fisher_information_of_their_outputs(tmp_path, rows, power):
    folder = make_model(tmp_path / "m", blocks=2)
    prunus.prune(folder, tmp_path / "out", recipe(rows, method="wanda", row_power=power))
    dense, norms, _, outputs = whole_model(folder)
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


def block_case(tmp_path, dtype=torch.float32):
    """A passage through the second block of a small model, with what the block has read."""
    source = Checkpoint(make_model(tmp_path / "m", "llama", blocks=2))
    runner = runner_of(source, dtype)
    hidden = HiddenStates(runner, random_rows(5, 16) + random_rows(2, 9, seed=1), None)
    tensors = source.read_block(1)
    block = runner.make_block(1, tensors)
    run = BlockRun(runner, block, 1, hidden, source.linears(1), False)
    return runner, block, hidden, observe(run, run.linears), tensors


def test_regional_gradients_are_those_of_the_norm_of_the_blocks_output(tmp_path):
    runner, block, hidden, stats, tensors = block_case(tmp_path)
    found = with_regional_gradients(runner, block, hidden, stats, scale=10.0)
    ours = runner.make_block(1, {name: tensor.clone() for name, tensor in tensors.items()}).requires_grad_()
    weights = {name: ours.get_submodule(name).get_parameter("weight") for name in LINEARS}
    squares = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch, rows in hidden.sequences():
        ours.zero_grad()
        runner.run_block(ours, rows.clone(), batch).norm().backward()
        for name in LINEARS:
            gradient = weights[name].grad
            assert gradient is not None
            squares[name] += gradient.square()
    for name in LINEARS:
        assert found[name].sequences == 1, "the norm stays that of all tokens"
        expected = 10 * (squares[name] / 7).sqrt()
        torch.testing.assert_close(found[name].gradient_OI, expected, rtol=1e-3, atol=1e-6 * expected.max().item())


def test_a_repair_brings_the_pruned_output_nearer_to_the_dense_one(tmp_path):
    runner, dense, hidden, stats, tensors = block_case(tmp_path)
    stats = with_regional_gradients(runner, dense, hidden, stats, scale=100.0)
    ask = Target(0.5)

    def error(rounds, rate):
        block = runner.make_block(1, {name: tensor.clone() for name, tensor in tensors.items()})

        def pruned(_name: str, weight: torch.Tensor, inputs: InputStats) -> torch.Tensor:
            return gblm.prune(weight, inputs, ask)

        with torch.no_grad():
            repair(runner, block, dense, hidden, stats, pruned, Repair(rounds, rate, "0"))
            for name in LINEARS:
                weight = block.get_submodule(name).get_parameter("weight")
                weight.data = pruned(name, weight.data, stats[name])
            pairs = [[runner.run_block(one, x, batch) for one in (block, dense)] for batch, x in hidden.batches()]
        return sum((a - b).square().sum().item() for a, b in pairs)

    assert error(5, 1e-3) < 0.8 * error(0, 1e-3)
    assert error(2, 0.0) == pytest.approx(error(0, 1e-3))


def test_wanda_plus_plus_updates_weights_and_is_the_same_twice(tmp_path, rows):
    folder = make_model(tmp_path / "m", blocks=2)
    asked = PruneRecipe(method="wanda++", calibration=str(rows), samples=COUNT, repair_rate=1e-3)
    for name in ("a", "b"):
        prunus.prune(folder, tmp_path / name, asked)
    first = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert first == (tmp_path / "b" / "model.safetensors").read_bytes()
    weight = Checkpoint(tmp_path / "a").read("model.layers.0.mlp.up_proj.weight")
    before = Checkpoint(folder).read("model.layers.0.mlp.up_proj.weight")
    assert not torch.equal(weight[weight != 0], before[weight != 0])
    unrepaired = PruneRecipe(method="wanda++", calibration=str(rows), samples=COUNT, repair_rounds=0)
    prunus.prune(folder, tmp_path / "c", unrepaired)
    weight = Checkpoint(tmp_path / "c").read("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(weight[weight != 0], before[weight != 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gblm", "row_power": 1.0}, "row_power belongs to method wanda, not to gblm"),
        ({"method": "wanda", "gradient_scale": 1.0}, r"gradient_scale belongs to method gblm or wanda\+\+"),
        ({"method": "wanda", "row_power": 1.0, "pattern": "2:4"}, "leave row_power out"),
        ({"method": "wanda", "row_power": -1.0}, "row_power must be 0 or more"),
        ({"method": "wanda++", "propagation": "staged"}, "propagation must be pruned or dense"),
        ({"allocation": "owl", "statistic": "median"}, "statistic belongs to allocation dlp"),
    ],
)
def test_options_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(PrunusError, match=message):
        PruneRecipe(**settings)


@pytest.mark.parametrize("settings", [{"method": "gblm"}, {"method": "wanda++"}, {"row_power": 1.0}])
def test_statistics_hold_no_gradients(tmp_path, rows, settings):
    folder = make_model(tmp_path / "m", blocks=2)
    prunus.stats(folder, tmp_path / "stats", calibration=str(rows), samples=COUNT)
    with pytest.raises(PrunusError, match="holds no gradients"):
        prunus.prune(folder, tmp_path / "out", PruneRecipe(propagation="dense", **settings), stats=tmp_path / "stats")


def test_one_token_has_no_gradient(tmp_path):
    folder = make_model(tmp_path / "m", blocks=2)
    (tmp_path / "one.jsonl").write_text('{"token_ids": [7]}\n')
    with pytest.raises(PrunusError, match="no sequence of two tokens or more"):
        prunus.prune(
            folder, tmp_path / "out", PruneRecipe(method="gblm", calibration=str(tmp_path / "one.jsonl"), samples=1)
        )


def test_zeros_of_rows_are_counted_exactly():
    from prunus.pruning.masks import zero_lowest_of_rows

    score = torch.randint(0, 4, (9, 31), generator=torch.Generator().manual_seed(0)).float()
    counts = torch.tensor([0, 1, 31, 7, 7, 20, 15, 30, 3])
    pruned = zero_lowest_of_rows(torch.ones(9, 31), score, counts)
    assert torch.equal(pruned == 0, zeros_by_rows(score, counts.tolist()))
    assert Fraction(int((pruned == 0).sum())) == int(counts.sum())
