"""The whole job on a real LLM: SmolLM2-135M-Instruct (Llama architecture), pruned at 50 %."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import warm_processes
from real_llm import docstrings, half_of_smollm2, smollm2
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunus
from prunus.store.store import Store

pytestmark = [pytest.mark.real_llm, pytest.mark.slow, warm_processes.in_one_worker]

SAMPLES, SEQLEN, HELD_OUT, JUDGED = 12, 512, 1, 256
FEW = 1  # enough to tell good models from bad ones; more for masks, weight by weight
GSM8K = Path(__file__).parents[1] / "data" / "gsm8k_30.jsonl"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smollm2")


@pytest.fixture(scope="module")
def texts(folder):
    """Files of token ids: calibration, and held-out text that shares no document with it."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2())
    documents = iter(docstrings())
    wanted, ids = (SAMPLES + 1 + HELD_OUT) * SEQLEN, []
    while len(ids) < wanted:
        ids += tokenizer.encode(next(documents) + "\n\n", add_special_tokens=False)
    rows = [ids[i : i + SEQLEN] for i in range(0, wanted, SEQLEN)]
    held_out = [row[:JUDGED] for row in rows[SAMPLES + 1 :]]  # the row between may share a document
    files = {"calibration": rows[:SAMPLES], "few": rows[:FEW], "held_out": held_out}
    for name, sequences in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in sequences))
    return {name: folder / f"{name}.jsonl" for name in files}


@pytest.fixture(scope="module")
def pruned(folder, texts):
    """Both methods at 50 %."""
    recipe = prunus.PruneRecipe(sparsity=0.5, calibration=str(texts["few"]), sequences=FEW, seqlen=SEQLEN)
    prunus.prune(smollm2(), folder / "wanda", recipe)
    return {"magnitude": half_of_smollm2(), "wanda": folder / "wanda"}


def first_two_blocks(folder):
    """A model of them alone: what is done to the first does not depend on later ones."""
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)
    del model.model.layers[2:]
    model.config.num_hidden_layers = 2
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2()).save_pretrained(folder)
    return folder


def weights(model):
    with safe_open(next(iter(sorted(Path(model).glob("*.safetensors")))), "pt") as first:
        names = set(first.keys())
    files = sorted(Path(model).glob("*.safetensors"))
    found = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  not a dict
    assert names <= set(found)
    return found


def test_perplexity_orders_dense_wanda_magnitude(pruned, texts, below):
    models = {"dense": smollm2(), **pruned}
    value = {
        name: prunus.perplexity(model, texts["held_out"], seqlen=JUDGED).perplexity for name, model in models.items()
    }
    below("dense / Wanda", value["dense"] / value["wanda"], 1)
    below("Wanda / magnitude", value["wanda"] / value["magnitude"], 1)
    below("Wanda / dense", value["wanda"] / value["dense"], 3)


def lowest_of_bfloat16(weight_N, count):
    """Positions of the count smallest in size, the first of equal ones, by counting the 32768 sizes that there are."""
    size_N = weight_N.view(torch.int16).numpy() & 0x7FFF
    counts = np.bincount(size_N, minlength=1 << 15)
    last = int(np.searchsorted(counts.cumsum(), count))
    below, equal = np.flatnonzero(size_N < last), np.flatnonzero(size_N == last)
    return torch.from_numpy(np.concatenate([below, equal[: count - len(below)]]))


def test_magnitude_mask_is_the_smallest_half_of_every_linear(pruned):
    dense, half = weights(smollm2()), weights(pruned["magnitude"])
    assert dense.keys() == half.keys()
    for name, before in dense.items():
        after = half[name]
        if "proj" not in name:
            assert torch.equal(before, after), name
            continue
        expected = before.flatten().clone()
        expected[lowest_of_bfloat16(expected, round(0.5 * before.numel()))] = 0
        assert torch.equal(expected.view_as(before), after), name


@pytest.mark.thorough
def test_wanda_mask_of_the_first_block_is_that_of_transformers_forward(texts, tmp_path, below):
    """Norms from transformers' own forward with hooks, up to that block; ranking by a stable full sort.

    In float32: how bfloat16 rounds in the block decides on some weights of down_proj.
    """
    model = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32)
    del model.model.layers[1:]
    block = model.model.layers[0]
    linears = {n: m for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
    squares = {name: torch.zeros(m.in_features, dtype=torch.float64) for name, m in linears.items()}

    def watch(name):
        def hook(_module, inputs):
            squares[name] += inputs[0].double().pow(2).flatten(0, -2).sum(0)

        return hook

    for name, module in linears.items():
        module.register_forward_pre_hook(watch(name))
    for line in texts["calibration"].read_text().splitlines():
        with torch.inference_mode():
            model.model(torch.tensor([json.loads(line)["token_ids"]]))
    recipe = prunus.PruneRecipe(
        method="wanda", sparsity=0.5, calibration=str(texts["calibration"]), sequences=SAMPLES, seqlen=SEQLEN
    )
    prunus.prune(first_two_blocks(tmp_path / "two"), tmp_path / "out", recipe)
    after = weights(tmp_path / "out")
    for name, module in linears.items():
        weight = module.weight.data
        score = weight.float().abs() * squares[name].sqrt().float()
        order = score.sort(dim=1, stable=True).indices[:, : round(0.5 * weight.shape[1])]
        ours = after[f"model.layers.0.{name}.weight"]
        expected = weight.clone().scatter_(1, order, 0)
        # Sums in another order, as of other processors, may swap weights whose scores agree; nothing else may differ.
        differ, last = ours != expected, score.gather(1, order[:, -1:])
        below(f"{name}: share that differs", differ.float().mean().item(), 3e-4)
        below(f"{name}: distance from the last score", (differ * (score / last - 1).abs()).max().item(), 3e-3)
        assert ((ours == 0).sum(1) >= order.shape[1]).all()


def test_pruned_model_loads_and_generates(pruned):
    model: Any = AutoModelForCausalLM.from_pretrained(pruned["wanda"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(pruned["wanda"])
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True, return_tensors="pt"
    )
    with torch.inference_mode():
        out = model.generate(**chat, max_new_tokens=12, do_sample=False)
    text = tokenizer.decode(out[0, chat["input_ids"].shape[1] :])
    assert len(text.split()) > 2, text


EVALUATE = """
import sys, prunus
plan = prunus.EvalPlan(tasks=(sys.argv[2],), budgets=(4, 8), limit=2, answer_tokens=4, batch_size=1, seed=3)
print(prunus.evaluate(sys.argv[1], plan, sys.argv[3]))
"""


@pytest.mark.thorough
def test_gsm8k_completes_and_resumes_after_a_kill(pruned, folder):
    store = folder / "gsm8k.db"
    arguments = pruned["wanda"], GSM8K, store
    with warm_processes.running(EVALUATE, *arguments) as first:
        before = rows_when_some_are_there(first, store)
    status, printed = warm_processes.run(EVALUATE, *arguments)
    assert status == 0
    with Store(store) as opened:
        rows = opened.samples(printed.split()[-1], texts=True)
    assert len(rows) == 4
    assert set(before) <= set(rows), "rows written before the kill were changed"
    assert all(row.thinking_tokens <= row.budget and row.answer_tokens <= 4 for row in rows)


def rows_when_some_are_there(process, store):
    """Rows of the first batches of a run that goes on meanwhile."""
    import time

    while process.is_running():
        time.sleep(0.05)
        if store.exists():
            try:
                with Store(store) as opened:
                    rows = [row for run in opened.runs() for row in opened.samples(run.run_id, texts=True)]
            except prunus.PrunusError:
                continue  # the store is being created or written this very moment
            if rows:
                return rows
    raise AssertionError("it ended before a row was there")
