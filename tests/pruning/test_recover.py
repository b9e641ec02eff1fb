"""Recovery trains what pruning kept of each block towards the dense model, and nothing else; zeros stay zero."""

import itertools
import json
import math
import random
import re
import signal
from dataclasses import replace
from typing import Any

import pytest
import torch
import warm_processes
from random_models import make_random_model
from safetensors.torch import load_file, save_file
from tiny_models import make_model, random_rows
from torch import nn
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.runner import Batch, Runner
from prunus.checkpoint.writer import Partial
from prunus.disk import show_bytes
from prunus.errors import PrunusError
from prunus.evaluation.tasks import load_task
from prunus.manifest import StepRecord
from prunus.pruning.calibration.data import Calibration
from prunus.pruning.recover import training as fitting
from prunus.pruning.recover.training import (
    TRAINING_BYTES,
    Example,
    StepPlan,
    activations_computed_again,
    fit,
    largest_block,
    pad,
    plan_steps,
    relative_error,
    share_of_rate,
    split,
    trainable,
)
from prunus.recipes import DropRecipe, PruneRecipe, RecoverRecipe
from prunus.store.labels import step_label

LENGTH, SEQUENCES = 24, 8


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
    return path


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", random_rows(SEQUENCES, LENGTH))


@pytest.fixture
def dense(tmp_path):
    return make_model(tmp_path / "dense", "qwen3")


def pruned_from(dense, rows, **changes):
    out = dense.with_name("pruned")
    prunus.prune(dense, out, PruneRecipe(**{"calibration": str(rows), "sequences": 8, "sparsity": 0.5} | changes))
    return out


def asked(rows, **changes):
    usual = {"calibration": str(rows), "sequences": SEQUENCES, "epochs": 1, "step_tokens": LENGTH}
    return RecoverRecipe(**usual | changes)


def tensors_of(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def output_of(model, index, ids):
    """What block index gives out within the whole model."""
    found = []
    handle = model.model.layers[index].register_forward_hook(
        lambda _module, _inputs, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    model(input_ids=torch.tensor([ids]))
    handle.remove()
    return found[0]


def recovered_by_hand(pruned, dense, rows, epochs, rate):
    """Tensors of the recovered blocks, by the whole models of transformers and Adam written out."""
    theirs, ours = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32).eval() for f in (dense, pruned))
    training, held_out = split(len(rows), random.Random("0 held out"))
    for index, layer in enumerate(ours.model.layers):
        targets = []
        for ids in rows:
            with torch.no_grad():
                targets.append(output_of(theirs, index, ids))

        def loss_of(i, index=index, targets=targets):
            error = (output_of(ours, index, rows[i]) - targets[i]).square().sum(-1)
            return (error / targets[i].square().sum(-1)).mean()

        def held_out_loss(loss_of=loss_of):
            with torch.no_grad():
                return sum(float(loss_of(i)) for i in held_out)

        ours.requires_grad_(False)
        layer.requires_grad_(True)
        weights = dict(layer.named_parameters())
        first = {name: p.detach().clone() for name, p in weights.items()}
        kept = {name: (p != 0) | (p.dim() == 1) for name, p in first.items()}
        size = {name: float(p[kept[name]].square().mean().sqrt()) for name, p in first.items()}
        moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in first.items()}
        rng, step, steps = random.Random(f"0 {index}"), 0, epochs * len(training)
        states = [(held_out_loss(), first)]
        for _ in range(epochs):
            for chosen in rng.sample(range(len(training)), len(training)):
                layer.zero_grad()
                loss_of(training[chosen]).backward()
                for name, p in weights.items():
                    gradient = torch.where(kept[name], p.grad, 0.0)
                    mean, square = moments[name]
                    mean.mul_(0.9).add_(gradient, alpha=0.1)
                    square.mul_(0.95).addcmul_(gradient, gradient, value=0.05)
                    corrected = mean / (1 - 0.9 ** (step + 1))
                    root = (square / (1 - 0.95 ** (step + 1))).sqrt() + 1e-12
                    with torch.no_grad():
                        p -= rate * size[name] * share_of_rate(step, steps) * corrected / root
                step += 1
            states.append((held_out_loss(), {name: p.detach().clone() for name, p in weights.items()}))
        with torch.no_grad():
            for name, tensor in min(states, key=lambda state: state[0])[1].items():
                weights[name].copy_(tensor)
    return ours.state_dict()


@pytest.mark.slow
def test_recovery_equals_training_blocks_within_the_whole_model(dense, rows, tmp_path):
    pruned = pruned_from(dense, rows)
    summary = prunus.recover(pruned, tmp_path / "out", asked(rows, epochs=2))
    expected = recovered_by_hand(pruned, dense, random_rows(SEQUENCES, LENGTH), epochs=2, rate=0.01)
    found, before = tensors_of(tmp_path / "out"), tensors_of(pruned)
    moved = 0
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)
        moved += not torch.equal(tensor, before[name])
    assert moved == 3 * 11  # seven Linears and four norms of each block
    assert summary.recovered == 3
    assert all(after < start for start, after in summary.errors)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [None, "2:4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_and_all_outside_blocks_stay_as_they_were(tmp_path, rows, dtype, pattern):
    dense = make_model(tmp_path / "dense", "llama", dtype=dtype, tied=True)
    pruned = pruned_from(dense, rows, pattern=pattern)
    prunus.recover(pruned, tmp_path / "out", asked(rows))
    before, after = tensors_of(pruned), tensors_of(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, old in before.items():
        assert after[name].dtype == old.dtype
        if ".layers." not in name:
            assert torch.equal(after[name], old)
        elif "proj" in name:
            assert torch.equal(after[name] == 0, old == 0)


@pytest.mark.slow
def test_own_targets_leave_the_first_block_as_it_would_be_and_errors_pile_up(dense, rows, tmp_path):
    """The first block reads the same and is to give the same; the others are fitted to other targets."""
    pruned = pruned_from(dense, rows)
    prunus.recover(pruned, tmp_path / "usual", asked(rows))
    prunus.recover(pruned, tmp_path / "own", asked(rows, target="own"))
    usual, own = tensors_of(tmp_path / "usual"), tensors_of(tmp_path / "own")
    alike = {int(name.split(".")[2]) for name in usual if "proj" in name and torch.equal(usual[name], own[name])}
    assert alike == {0}


@pytest.mark.slow
@pytest.mark.parametrize("blocks", ["0,", "1,2", "3,"])
def test_the_block_before_a_removed_one_learns_to_do_its_work(tmp_path, rows, blocks):
    dense = make_model(tmp_path / "dense", "qwen3", blocks=4)
    prunus.drop(dense, tmp_path / "pruned", DropRecipe(blocks=blocks))
    prunus.recover(tmp_path / "pruned", tmp_path / "out", asked(rows, epochs=4))
    ids = random_rows(4, LENGTH, seed=9)
    models = [
        AutoModelForCausalLM.from_pretrained(tmp_path / f, dtype=torch.float32) for f in ("dense", "pruned", "out")
    ]
    with torch.no_grad():
        wanted, before, after = (model(torch.tensor(ids)).logits for model in models)
    assert (after - wanted).norm() < (before - wanted).norm()


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gpt_neox", "phi3", "gemma3_text", "qwen3_moe", "olmo2", "gpt_oss"])
def test_any_decoder_is_recovered(tmp_path, model_type):
    folder = tmp_path / "dense"
    config = make_random_model(model_type, folder)
    generator = random.Random(0)
    ids = [[generator.randrange(config.vocab_size) for _ in range(16)] for _ in range(8)]
    path = write_rows(tmp_path / "rows.jsonl", ids)
    pruned = pruned_from(folder, path)
    summary = prunus.recover(pruned, tmp_path / "out", asked(path, step_tokens=16))
    assert summary.recovered > 0
    before, after = tensors_of(pruned), tensors_of(tmp_path / "out")
    for index in range(Checkpoint(pruned).blocks):
        for linear in Checkpoint(pruned).linears(index):
            for name in Checkpoint(pruned).weight_sources(index, linear.name):
                assert torch.equal(after[name] == 0, before[name] == 0)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert model.generate(torch.tensor([ids[0]]), max_new_tokens=2, do_sample=False).shape[1] == 18


def test_padding_counts_nothing(tmp_path, dense):
    """Sequences of unlike lengths in one step are trained on as if each had run alone."""
    ids = [row[: 5 + 3 * i] for i, row in enumerate(random_rows(6, LENGTH))]
    padded, counted = pad([*reversed(ids)], 48)
    assert [list(itertools.compress(row, mask)) for row, mask in zip(padded, counted, strict=True)] == ids
    assert all(mask == sorted(mask, reverse=True) for mask in counted), "padding is on the right"
    assert max(map(len, padded)) == len(ids[-1])
    layer, target = nn.Linear(4, 4), torch.randn(2, 5, 4)
    whole, cut = torch.randn(2, 5, 4), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    alone = relative_error(layer(whole[:1]), target[:1], cut[:1]) + relative_error(
        layer(whole[1:, :3]), target[1:, :3], cut[1:, :3]
    )
    torch.testing.assert_close(relative_error(layer(whole), target, cut), alone)


KILLED = """
import os, signal, sys
import prunus
from prunus.checkpoint import writer

model, out, rows = sys.argv[1:]
write_block, finished = writer.Partial.write_block, 0

def counted(self, *arguments):
    global finished
    write_block(self, *arguments)
    finished += 1
    if finished == 2:
        os.kill(os.getpid(), signal.SIGKILL)

writer.JOURNAL_SECONDS = 0
writer.Partial.write_block = counted
recipe = prunus.RecoverRecipe(calibration=rows, sequences=8, epochs=1, step_tokens=24)
prunus.recover(model, out, recipe)
"""


@pytest.mark.slow
@warm_processes.in_one_worker
@pytest.mark.parametrize("offload", [False, True])
def test_killed_recovery_resumes_to_the_same_bytes(tmp_path, dense, rows, offload):
    pruned = pruned_from(dense, rows)
    prunus.recover(pruned, tmp_path / "unbroken" / "out", asked(rows))
    out = tmp_path / "broken" / "out"
    assert warm_processes.run(KILLED, pruned, out, rows) == (-signal.SIGKILL, "")
    assert not out.exists()
    prunus.recover(pruned, out, asked(rows), offload=offload)
    assert contents(out) == contents(tmp_path / "unbroken" / "out")
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.slow
def test_one_and_two_threads_give_the_same_bytes(tmp_path):
    """A step has 512 tokens of width 128, enough for torch to divide its operations among threads."""
    dense = make_model(tmp_path / "dense", "qwen3", blocks=1, hidden_size=128, intermediate_size=384)
    rows, threads = write_rows(tmp_path / "rows.jsonl", random_rows(8, 128)), torch.get_num_threads()
    pruned, recipe = pruned_from(dense, rows), asked(rows, step_tokens=512, sequences=8, epochs=1)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert prunus.recover(pruned, tmp_path / str(count), recipe).recovered == 1
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def example(run, width=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    input_NTW, target_NTW = (torch.randn(2, 8, width, generator=generator) for _ in range(2))
    return Example(lambda rows_NTW, _first: run(rows_NTW), input_NTW, target_NTW, torch.ones(2, 8))


def fitted(block, training, held_out, **changes):
    dtypes = dict.fromkeys(block.state_dict(), torch.float32)
    usual = {"rate": 0.05, "epochs": 3, "rng": random.Random(0), "plan": StepPlan(16)}
    return fit(trainable(block, dtypes, ["0"]), training, held_out, **usual | changes)


def test_a_block_whose_held_out_error_rises_is_put_back():
    block = nn.Sequential(nn.Linear(4, 4))
    held_out = example(block, seed=1)
    with torch.no_grad():
        held_out = held_out._replace(target_NTW=block(held_out.input_NTW))  # nothing can be better than the start
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    found = fitted(block, [example(block)], [held_out])
    assert (found.before, found.after, found.trained, found.finite) == (0.0, 0.0, False, True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [StepPlan(1), StepPlan(24), StepPlan(48), StepPlan(96, checkpointed=True)],
    ids=lambda plan: str(tuple(plan)),
)
def test_micro_batches_and_computing_again_change_nothing_but_rounding(tmp_path, dense, rows, monkeypatch, plan):
    """Steps of four sequences."""
    ids = [row[: 12 + i] for i, row in enumerate(random_rows(SEQUENCES, LENGTH + 4))]  # so that there is padding
    path = tmp_path / "unlike.jsonl"
    path.write_text(Calibration(ids, "random", []).to_jsonl())
    recipe = asked(path, step_tokens=96)
    pruned, found = pruned_from(dense, rows), []
    for made in (StepPlan(96), plan):
        monkeypatch.setattr("prunus.pruning.recover.training.plan_steps", lambda *_, made=made: made)
        summary = prunus.recover(pruned, tmp_path / str(made.micro_batch) / str(made.checkpointed), recipe)
        found.append((summary, tensors_of(tmp_path / str(made.micro_batch) / str(made.checkpointed))))
    (first, whole), (second, parts) = found
    assert second.error_after == pytest.approx(first.error_after, rel=1e-4)
    assert first.recovered == second.recovered == 3
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-5)
    if plan.checkpointed:  # the same operations in the same order
        assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())


def test_memory_that_is_free_decides_how_steps_are_computed_and_the_work_keeps_it(dense, rows, tmp_path, monkeypatch):
    source = Checkpoint(pruned_from(dense, rows))
    width = source.architecture.width
    each = 12 * (width + sum(rows for rows, _ in source.linear_shapes(0).values()))
    block = TRAINING_BYTES * largest_block(source)
    cpu = torch.device("cpu")

    def planned(free, longest=LENGTH):
        monkeypatch.setattr("prunus.pruning.calibration.hidden_states.free_memory", lambda: block + free * each)
        return plan_steps(source, cpu, 4 * LENGTH, longest)[:2]

    assert planned(1000) == planned(4 * LENGTH) == (4 * LENGTH, False)
    assert planned(2 * LENGTH) == (2 * LENGTH, False)
    assert planned(LENGTH - 1) == (LENGTH - 1, True)  # then a sequence runs alone
    assert planned(1000, longest=500) == (500, False)
    rows = {name: rows for name, (rows, _) in source.linear_shapes(0).items()}
    mlp = sum(rows[f"mlp.{name}"] for name in ("gate_proj", "up_proj", "down_proj"))
    attention = sum(rows[f"self_attn.{name}"] for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
    least = LENGTH * (width + max(mlp, attention)) / (width + mlp + attention)
    assert planned(math.ceil(least))[1]
    with pytest.raises(PrunusError, match="on a sequence of 24 tokens takes"):
        planned(math.floor(least) - 1)


@pytest.mark.slow
def test_interrupted_work_goes_on_with_the_micro_batches_that_it_began_with(tmp_path, dense, rows, monkeypatch):
    pruned, recipe = pruned_from(dense, rows), asked(rows, step_tokens=4 * LENGTH)
    monkeypatch.setattr("prunus.pruning.recover.training.plan_steps", lambda *_: StepPlan(LENGTH, checkpointed=True))
    prunus.recover(pruned, tmp_path / "unbroken", recipe)
    write_block = Partial.write_block

    def stop_after_one(self, index, *arguments):
        write_block(self, index, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Partial, "write_block", stop_after_one)
        prunus.recover(pruned, tmp_path / "out", recipe)
    monkeypatch.setattr("prunus.pruning.recover.training.plan_steps", lambda *_: StepPlan(4 * LENGTH))
    prunus.recover(pruned, tmp_path / "out", recipe)
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_only_what_lies_within_attention_and_mlp_is_computed_again(dense):
    source = Checkpoint(dense)
    calls: list[str] = []
    runner = Runner(source, torch.float32, torch.device("cpu"))
    block: Any = runner.read_block(0)
    block.mlp.down_proj.register_forward_pre_hook(lambda *_: calls.append("down_proj"))
    block.input_layernorm.register_forward_pre_hook(lambda *_: calls.append("norm"))
    block.requires_grad_(True)
    rows_NTW, batch = torch.randn(1, 8, runner.width), Batch(torch.zeros(1, 8, dtype=torch.long))
    with activations_computed_again(block):
        runner.run_block(block, rows_NTW, batch).sum().backward()
    assert calls == ["norm", "down_proj", "down_proj"]
    calls.clear()
    runner.run_block(block, rows_NTW, batch).sum().backward()
    assert calls == ["norm", "down_proj"]


def test_the_best_epoch_is_kept_and_not_the_last(monkeypatch):
    block = nn.Sequential(nn.Linear(4, 4))
    training = [example(block, seed=seed) for seed in range(8)]
    errors = []
    watched = fitting.mean_error
    monkeypatch.setattr(fitting, "mean_error", lambda examples: errors.append(watched(examples)) or errors[-1])
    monkeypatch.setattr(fitting, "share_of_rate", lambda step, steps: 1.0 if step < steps // 2 else 100.0)
    found = fitted(block, training, training, epochs=12)
    *_, last, after = errors
    assert found.after == after == min(errors)
    assert last > 2 * after


@pytest.mark.slow
def test_a_block_that_becomes_nan_is_left_as_it_was_and_named(tmp_path, dense, rows, monkeypatch):
    pruned = pruned_from(dense, rows)
    monkeypatch.setattr(fitting, "share_of_rate", lambda *_: 1e38)  # weights whose squares no float32 holds
    summary = prunus.recover(pruned, tmp_path / "out", asked(rows))
    assert summary.warnings == ["training gave NaN or infinity in blocks 0, 1, 2, left as they were: lower --rate"]
    before, after = tensors_of(pruned), tensors_of(tmp_path / "out")
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [PruneRecipe(sequences=8, sparsity=0.5), DropRecipe(blocks="1,", sequences=8)], ids=["prune", "drop"]
)
def test_one_command_gives_what_two_give_and_goes_on_where_it_stopped(tmp_path, dense, rows, recipe, monkeypatch):
    recipe = replace(recipe, calibration=str(rows))
    if isinstance(recipe, PruneRecipe):
        prunus.prune(dense, tmp_path / "pruned", recipe)
    else:
        prunus.drop(dense, tmp_path / "pruned", recipe)
    prunus.recover(tmp_path / "pruned", tmp_path / "two", asked(rows))
    monkeypatch.setattr("prunus.pruning.recover.recover.recover_blocks", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prunus.apply_steps(dense, tmp_path / "one", [recipe, asked(rows)])
    assert not (tmp_path / "one").exists()
    monkeypatch.undo()
    for name in ("prune.prune.prune", "drop.drop"):  # what was pruned is not pruned again
        monkeypatch.setattr(f"prunus.pruning.{name}", lambda *_, **__: 1 / 0)
    prunus.apply_steps(dense, tmp_path / "one", [recipe, asked(rows)])
    one, two = tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two")
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())
    assert not (tmp_path / "one.after-1").exists()


@pytest.mark.slow
def test_what_was_done_is_in_the_manifest(tmp_path, dense, rows):
    pruned = pruned_from(dense, rows)
    prunus.recover(pruned, tmp_path / "out", asked(rows))
    first, second = json.loads((tmp_path / "out" / "prunus.json").read_text())["history"]
    assert (first["action"], second["action"]) == ("prune", "recover")
    assert second["dense"]["checksum"] == first["source"]["checksum"] == Checkpoint(dense).checksum()
    assert second["source"]["checksum"] == Checkpoint(pruned).checksum()
    assert RecoverRecipe.from_json(second["recipe"]) == asked(rows)
    assert second["calibration"]["tokens"] == SEQUENCES * LENGTH
    assert [block["steps"] for block in second["blocks"]] == [7] * 3
    assert second["cost"] == {"tokens": 3 * 7 * LENGTH, "steps": 3 * 7}
    shown = prunus.inspect(tmp_path / "out").history[1]
    assert shown.action == "recover" and shown.trained_tokens == second["cost"]["tokens"]
    assert RecoverRecipe.from_json(dict(shown.recipe)) == asked(rows)
    assert step_label(StepRecord.of(second)) == "recovered"


@pytest.mark.slow
def test_errors_and_time_left_are_told_without_a_terminal(tmp_path, dense, rows, monkeypatch, capsys):
    pruned = pruned_from(dense, rows)
    monkeypatch.setattr("prunus.progress.LOG_EVERY_SECONDS", 0.0)
    summary = prunus.recover(pruned, tmp_path / "out", asked(rows))
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recovering")]
    assert len(told) == len(summary.errors) == 3
    for number, (line, (before, after)) in enumerate(zip(told, summary.errors, strict=True), 1):
        left = r", about \d+ s left" if number > 1 else ""  # it follows from the work since the first progress
        assert re.match(rf"recovering: {number}/3 fits{left} error ", line), line
        assert line.endswith(f"error {before:.3g} -> {after:.3g}")
    prunus.recover(pruned, tmp_path / "best", replace(asked(rows), rate=None))  # three rates on the first block
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("recovering")]
    assert [line.split(" fits")[0] for line in told] == [f"recovering: {fits}/5" for fits in (3, 4, 5)]


@pytest.mark.slow
def test_wrong_input_is_one_line(tmp_path, dense, rows):
    pruned = pruned_from(dense, rows)
    other = make_model(tmp_path / "other", "qwen3", seed=1)
    for model, settings, words in [
        (dense, {}, "has no manifest"),
        (dense, {"dense": other}, "no zeros and lacks no block"),
        (pruned, {"dense": other}, "other weights than the model"),
        (pruned, {"dense": pruned}, "the pruned model itself"),
    ]:
        with pytest.raises(PrunusError, match=words):
            prunus.recover(model, tmp_path / "out", asked(rows), **settings)
        assert not list(tmp_path.glob("out*"))
    (pruned / "prunus.json").unlink()  # pruned by another tool
    deeper = make_model(tmp_path / "deeper", "qwen3", blocks=4)
    with pytest.raises(PrunusError, match=r"has 3 blocks, .* 4"):
        prunus.recover(pruned, tmp_path / "out", asked(rows), dense=deeper)
    prunus.recover(pruned, tmp_path / "out", asked(rows), dense=dense)


@pytest.mark.slow
def test_only_the_block_whose_loss_is_nan_is_left_as_it_was(tmp_path, dense, rows, monkeypatch):
    pruned, fits = pruned_from(dense, rows), itertools.count()
    fit_block = fitting.fit

    def fit_with_nan_in_block_1(parameters, training, held_out, **settings):
        if next(fits) == 1:
            training = [e._replace(target_NTW=e.target_NTW * math.nan) for e in training]
        return fit_block(parameters, training, held_out, **settings)

    monkeypatch.setattr(fitting, "fit", fit_with_nan_in_block_1)
    summary = prunus.recover(pruned, tmp_path / "out", asked(rows))
    assert summary.warnings == ["training gave NaN or infinity in blocks 1, left as they were: lower --rate"]
    before, after = tensors_of(pruned), tensors_of(tmp_path / "out")
    moved = {name.split(".")[2] for name in before if "proj" in name and not torch.equal(before[name], after[name])}
    assert moved == {"0", "2"}


@pytest.mark.slow
def test_what_is_held_out_was_not_trained_on_though_all_fits_into_one_step(tmp_path, dense, rows, monkeypatch):
    """Four sequences of which one step could take all: one is held out. A single one is refused."""
    pruned, seen, fit_block = pruned_from(dense, rows), [], fitting.fit

    def noted(parameters, training, held_out, **settings):
        trained, kept = ([row.numpy().tobytes() for e in part for row in e.input_NTW] for part in (training, held_out))
        seen.append((trained, kept))
        return fit_block(parameters, training, held_out, **settings)

    monkeypatch.setattr(fitting, "fit", noted)
    prunus.recover(pruned, tmp_path / "out", asked(rows, sequences=4, step_tokens=100_000, epochs=1))
    assert seen
    for trained, kept in seen:
        assert len(trained) >= 1 and len(kept) >= 1 and len(trained) + len(kept) == 4
        assert not set(kept) & set(trained)
    for settings in ({"sequences": 1}, {"calibration_tokens": 1}):
        with pytest.raises(PrunusError, match=r"one sequence, so that none can be held out .* give at least two"):
            prunus.recover(pruned, tmp_path / "one", asked(rows, **settings))
        assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("one")) == []


def test_a_dense_model_of_other_shape_is_refused(tmp_path, dense, rows):
    pruned = pruned_from(dense, rows)
    (pruned / "prunus.json").unlink()
    wider = make_model(tmp_path / "wider", "qwen3", intermediate_size=64)
    with pytest.raises(PrunusError, match=r"block 0 of .*pruned and block 0 of .*wider differ in shape"):
        prunus.recover(pruned, tmp_path / "out", asked(rows), dense=wider)
    assert not list(tmp_path.glob("out*"))


def test_a_dry_run_says_how_many_tokens_it_would_train_on_and_writes_nothing(tmp_path, dense, rows):
    pruned, tokens = pruned_from(dense, rows), SEQUENCES * LENGTH
    told = prunus.plan(pruned, RecoverRecipe(calibration=str(rows), calibration_tokens=tokens), tmp_path / "out")
    assert told.calibration == f"{rows}: {SEQUENCES} sequences, {tokens} tokens"
    both = 2 * 4 * tokens * Checkpoint(pruned).architecture.width  # streams in float32
    assert (told.streams, told.blocks, told.dense) == (show_bytes(both), 3, str(dense))
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("planned", [False, True])
def test_without_memory_for_the_optimiser_of_a_block_nothing_is_begun(tmp_path, dense, rows, monkeypatch, planned):
    pruned = pruned_from(dense, rows)
    needed = TRAINING_BYTES * largest_block(Checkpoint(pruned))
    monkeypatch.setattr("prunus.pruning.calibration.hidden_states.free_memory", lambda: needed - 1)
    words = r"training the largest block of .* takes .* of memory, and .* are free; end other programs, or take"
    with pytest.raises(PrunusError, match=words) as error:
        if planned:
            prunus.plan(pruned, asked(rows), tmp_path / "out")
        else:
            prunus.recover(pruned, tmp_path / "out", asked(rows))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out*"))


def test_without_memory_for_a_single_sequence_nothing_is_left_behind(tmp_path, dense, rows, monkeypatch):
    pruned = pruned_from(dense, rows)
    needed = TRAINING_BYTES * largest_block(Checkpoint(pruned))
    monkeypatch.setattr("prunus.pruning.calibration.hidden_states.free_memory", lambda: needed + 1)
    words = r"on a sequence of 24 tokens takes .* are free; .* calibrate on shorter sequences \(of a text: --seqlen;"
    with pytest.raises(PrunusError, match=words) as error:
        prunus.recover(pruned, tmp_path / "out", asked(rows))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out*"))


def test_evaluation_problems_are_no_calibration(tmp_path, dense, rows):
    pruned = pruned_from(dense, rows)
    question = load_task("tiny", 1)[0].question
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"text": question}) + "\n")
    with pytest.raises(PrunusError, match="holds a question of the evaluation set tiny"):
        prunus.recover(pruned, tmp_path / "out", asked(path))
    assert not list(tmp_path.glob("out*"))


def test_another_tools_model_without_zeros_is_refused(tmp_path, dense, rows):
    twin = make_model(tmp_path / "twin", "qwen3", seed=3)
    tensors = tensors_of(twin)
    save_file(tensors, twin / "model.safetensors", {"format": "pt"})
    with pytest.raises(PrunusError, match="no zeros"):
        prunus.recover(twin, tmp_path / "out", asked(rows), dense=dense)


@pytest.mark.parametrize("changes", [{"rate": 0.0}, {"rate": 1.5}, {"epochs": 0}, {"step_tokens": 0}, {"target": "x"}])
def test_settings_out_of_range_are_refused(changes):
    with pytest.raises(PrunusError, match=next(iter(changes))):
        RecoverRecipe(**changes)
