"""benchmarks/recover_cost.py, which states the cost of recovery by formula, against recoveries that are counted."""

import json
import runpy
from pathlib import Path

import pytest
from tiny_models import make_model, random_rows
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import prunus
from prunus.pruning.recover import recover as recovering
from prunus.pruning.recover import training as recovery
from prunus.recipes import PruneRecipe, RecoverRecipe

ROOT = Path(__file__).parents[1]
LENGTH, SEQUENCES, BLOCKS = 24, 8, 2


@pytest.fixture
def cost():
    return runpy.run_path(str(ROOT / "benchmarks/recover_cost.py"))


def shape_of(folder, cost):
    config = json.loads((folder / "config.json").read_text())
    head = config["head_dim"]
    return cost["Shape"](
        blocks=config["num_hidden_layers"],
        width=config["hidden_size"],
        attention=head * config["num_attention_heads"],
        keys=head * config["num_key_value_heads"],
        feed=config["intermediate_size"],
        vocabulary=config["vocab_size"],
    )


@pytest.mark.slow
def test_operations_steps_and_streams_are_those_of_a_recovery(tmp_path, cost, monkeypatch):
    """torch counts products of matrices but not its CPU attention, whose calls are counted here."""
    dense, rows = make_model(tmp_path / "dense", "qwen3", blocks=BLOCKS), tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in random_rows(SEQUENCES, LENGTH)))
    prunus.prune(dense, tmp_path / "pruned", PruneRecipe(sparsity=0.5, calibration=str(rows), sequences=8))
    epochs = 2
    counter, held, attended = FlopCounterMode(display=False), [], {False: 0, True: 0}
    recover_blocks, attend = recovering.recover_blocks, functional.scaled_dot_product_attention
    open_streams = recovery.open_streams

    def counted(*arguments):
        attended.update({False: 0})  # those of the look at the architecture
        with counter:
            recover_blocks(*arguments)

    def opened(*arguments):
        streams = open_streams(*arguments)
        held.append(streams.student_states.states_SW.nbytes + streams.teacher_states.states_SW.nbytes)
        return streams

    def attention(query_NHTD, *arguments, **settings):
        sequences, heads, tokens, width = query_NHTD.shape
        attended[query_NHTD.requires_grad] += 4 * sequences * heads * width * tokens**2 // 2  # no token looks ahead
        return attend(query_NHTD, *arguments, **settings)

    monkeypatch.setattr(recovering, "recover_blocks", counted)
    monkeypatch.setattr(recovery, "open_streams", opened)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", attention)
    recipe = RecoverRecipe(str(rows), sequences=SEQUENCES, epochs=epochs, step_tokens=LENGTH)
    told = prunus.recover(tmp_path / "pruned", tmp_path / "out", recipe)
    found = cost["cost_of"](shape_of(dense, cost), SEQUENCES * LENGTH, epochs, LENGTH, LENGTH)
    assert counter.get_total_flops() + attended[False] + 3 * attended[True] == found.training + found.forward
    assert held == [found.streams]
    manifest = json.loads((tmp_path / "out/prunus.json").read_text())["history"][-1]
    assert manifest["cost"] == {"tokens": told.trained_tokens, "steps": BLOCKS * found.steps}
    assert told.trained_tokens == BLOCKS * found.steps * LENGTH
    read = (dense / "model.safetensors").stat().st_size
    assert found.disk_moved * 2 == pytest.approx(3 * read, rel=0.05)  # this model is stored in float32
