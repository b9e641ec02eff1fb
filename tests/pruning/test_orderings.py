"""What must hold on any real LLM, on SmolLM2: which pruned models are better than which, by held-out perplexity.

Statistics are of the dense model and weights are pruned in memory, so that one model serves a dozen variants. All is
computed in float32, as rounding to bfloat16 moves a perplexity by a hundredth from processor to processor.
benchmarks/quality.py measures the same with prunus.prune, on more text, over three calibration samples.
"""

import json
import math
from functools import cache
from itertools import pairwise

import pytest
import torch
from real_llm import docstrings, smollm2
from tiny_models import LINEARS
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunus
from prunus.checkpoint.resolve import load_tokenizer, resolve
from prunus.pruning.calibration.statistics import Hessian, InputStats
from prunus.pruning.masks import Target
from prunus.pruning.methods import METHODS, with_update

pytestmark = [pytest.mark.slow, pytest.mark.thorough, pytest.mark.xdist_group("orderings")]

CALIBRATION, HELD_OUT, SEQLEN = 8, 1, 256
HALF, MORE = Target(0.5), Target(0.6)
TWO_OF_FOUR, FOUR_OF_EIGHT = Target(0.5, pattern=(2, 4)), Target(0.5, pattern=(4, 8))
ALL, FIFTH = 1, 5  # every block is pruned, or every fifth one; SparseGPT takes half a second a block
IN_DETAIL = ("5.self_attn.o_proj", "10.mlp.gate_proj")  # Linears whose errors are compared, by their first outputs
OUTPUTS = 192

# Linears that read the same tensor as an earlier one.
SAME_INPUT_AS = {
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "mlp.up_proj": "mlp.gate_proj",
}


class Llm:
    """SmolLM2 in memory, with the statistics of all inputs on calibration text, and held-out text."""

    def __init__(self):
        self.network = AutoModelForCausalLM.from_pretrained(smollm2(), dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(smollm2())
        ids = []
        for text in docstrings():
            ids += tokenizer.encode(text + "\n\n", add_special_tokens=False)
            if len(ids) > (CALIBRATION + 1 + HELD_OUT) * SEQLEN:
                break
        rows_NT = torch.tensor(ids[: len(ids) // SEQLEN * SEQLEN]).view(-1, SEQLEN)
        # The row between may share a document with both.
        self.calibration_NT, self.held_out_NT = rows_NT[:CALIBRATION], rows_NT[CALIBRATION + 1 :][:HELD_OUT]
        self.linears = {
            f"{index}.{name}": block.get_submodule(name)
            for index, block in enumerate(self.network.model.layers)
            for name in LINEARS
        }
        self.dense = {name: linear.weight.data for name, linear in self.linears.items()}
        self.inputs = self.observe()

    @torch.inference_mode()
    def observe(self):
        squares, products = {}, {}

        def watch(name):
            def hook(_module, inputs):
                input_SI = inputs[0].flatten(0, -2)
                squares[name] = input_SI.square().sum(0)
                if int(name.partition(".")[0]) % FIFTH == 0:  # nobody needs the other Hessians
                    products[name] = input_SI.T @ input_SI

            return hook

        leaders = [name for name in self.linears if name.partition(".")[2] not in SAME_INPUT_AS]
        handles = [self.linears[name].register_forward_pre_hook(watch(name)) for name in leaders]
        self.network.model(self.calibration_NT)
        for handle in handles:
            handle.remove()
        found = {
            name: InputStats(
                squares[name].sqrt(),
                self.calibration_NT.numel(),
                hessian=Hessian(products[name]) if name in products else None,
            )
            for name in leaders
        }
        leader_of = {name: name for name in LINEARS} | SAME_INPUT_AS
        of = {name: "{}.{}".format(name.partition(".")[0], leader_of[name.partition(".")[2]]) for name in self.linears}
        return {name: found[of[name]] for name in self.linears}

    @torch.inference_mode()
    def nll(self):
        """Nats per token of the held-out text."""
        return self.network(self.held_out_NT, labels=self.held_out_NT).loss.item()

    def perplexity_of(self, prune, every=ALL):
        """With every Linear's weight replaced by prune(weight, inputs). every: 5 for those of every fifth block."""
        try:
            for name, linear in self.linears.items():
                if int(name.partition(".")[0]) % every == 0:
                    linear.weight.data = prune(self.dense[name], self.inputs[name])
            return math.exp(self.nll())
        finally:
            for name, linear in self.linears.items():
                linear.weight.data = self.dense[name]

    def perplexity_without(self, block):
        layers = self.network.model.layers
        try:
            self.network.model.layers = torch.nn.ModuleList([layer for i, layer in enumerate(layers) if i != block])
            return math.exp(self.nll())
        finally:
            self.network.model.layers = layers


@pytest.fixture(scope="module")
def llm():
    return Llm()


@pytest.fixture(scope="module")
def perplexity(llm):
    """perplexity(method, target, every), each measured once."""

    @cache
    def measured(method, target, every=ALL):
        return llm.perplexity_of(lambda w_OI, inputs: METHODS[method].prune(w_OI, inputs, target), every)

    return measured


@pytest.mark.thorough
@pytest.mark.real_llm
def test_dense_then_wanda_then_magnitude(llm, perplexity, below):
    wanda = perplexity("wanda", HALF)
    below("dense / Wanda", math.exp(llm.nll()) / wanda, 1)
    below("Wanda / magnitude", wanda / perplexity("magnitude", HALF), 0.5)


@pytest.mark.thorough
@pytest.mark.real_llm
def test_sparsegpt_beats_wanda_where_much_is_lost(perplexity, below):
    """Processors move these ratios by up to 0.003, as near ties are pruned differently; the others move far less."""
    sparsegpt = perplexity("sparsegpt", MORE, FIFTH)
    below("at 60 %", sparsegpt / perplexity("wanda", MORE, FIFTH), 0.9)
    two_of_four = [perplexity(name, TWO_OF_FOUR, FIFTH) for name in ("sparsegpt", "wanda")]
    below("at 2:4", two_of_four[0] / two_of_four[1], 0.85)
    below("at 60 % / magnitude at 50 %", sparsegpt / perplexity("magnitude", HALF, FIFTH), 0.75)


def all_rise(below, values):
    """The named values are in ascending order."""
    for (low, one), (high, other) in pairwise(values.items()):
        below(f"{low} / {high}", one / other, 1)


@pytest.mark.real_llm
def test_more_sparsity_is_worse(perplexity, below):
    all_rise(below, {f"{share:.0%}": perplexity("wanda", Target(share), FIFTH) for share in (0.2, 0.5, 0.6, 0.7)})


@pytest.mark.real_llm
def test_tighter_patterns_are_worse(perplexity, below):
    targets = {"50%": HALF, "4:8": FOUR_OF_EIGHT, "2:4": TWO_OF_FOUR}
    all_rise(below, {name: perplexity("wanda", target, FIFTH) for name, target in targets.items()})


@pytest.mark.real_llm
def test_random_zeros_are_a_catastrophe(llm, perplexity, below):
    generator = torch.Generator().manual_seed(0)
    value = llm.perplexity_of(lambda w_OI, _inputs: w_OI * (torch.rand(w_OI.shape, generator=generator) < 0.5))
    below("Wanda / random", perplexity("wanda", HALF) / value, 1 / 20)


@pytest.mark.real_llm
def test_norms_of_other_inputs_are_worse(llm, perplexity, below):
    generator = torch.Generator().manual_seed(0)

    def prune(weight_OI, inputs):
        order_I = torch.randperm(len(inputs.norm_I), generator=generator)
        return METHODS["wanda"].prune(weight_OI, InputStats(inputs.norm_I[order_I]), HALF)

    below("own / other", perplexity("wanda", HALF) / llm.perplexity_of(prune), 0.5)


@pytest.mark.real_llm
def test_the_first_block_is_worth_more_than_a_late_one(llm, below):
    below("late / first", llm.perplexity_without(20) / llm.perplexity_without(0), 1 / 20)


@pytest.mark.real_llm
@pytest.mark.parametrize("name", IN_DETAIL)
def test_reconstruction_error_falls_from_method_to_method(llm, name, below):
    """|| (W - W') X ||^2 on the calibration text; all zero the same number of weights."""
    weight_OI, inputs = llm.dense[name][:OUTPUTS], llm.inputs[name]
    ways = {
        "ALPS": METHODS["alps"],
        "SparseGPT": METHODS["sparsegpt"],
        "Wanda with update": with_update(METHODS["wanda"]),
        "Wanda": METHODS["wanda"],
    }
    errors = {}
    for way, method in ways.items():
        new_OI = method.prune(weight_OI, inputs, HALF)
        assert int((new_OI == 0).sum()) == weight_OI.numel() // 2
        lost_OI = weight_OI.double() - new_OI.double()
        errors[way] = (lost_OI @ inputs.hessian.matrix_II.double() * lost_OI).sum().item()
    all_rise(below, errors)
    below("ALPS / Wanda", errors["ALPS"] / errors["Wanda"], 0.5)


@pytest.mark.thorough
def test_own_chains_teach_pruning_what_to_keep(tmp_path, below):
    """The tiny reasoner, pruned on its own chains, finds other chains of its own likelier than after as much text."""
    recipe = prunus.TraceRecipe(tasks=("tiny-train",), limit=36, chain_tokens=192, batch_size=36)
    prunus.traces("tiny", tmp_path / "traces.jsonl", recipe)
    chains = [json.loads(line) for line in (tmp_path / "traces.jsonl").read_text().splitlines()]
    held_out, tokenizer = chains[24:], load_tokenizer(resolve("tiny"))
    english = [i for text in docstrings()[:20] for i in tokenizer.encode(text, add_special_tokens=False)]
    rows = {
        "chains": [chain["token_ids"] for chain in chains[:24]],
        "text": [english[begin : begin + 128] for begin in range(0, len(english), 128)],
    }
    lost = {}
    for name, part in rows.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in part))
        recipe = prunus.PruneRecipe(sparsity=0.5, calibration=str(file), calibration_tokens=2000, seqlen=128)
        prunus.prune("tiny", tmp_path / name, recipe)
        lost[name] = sum(chain_nll(AutoModelForCausalLM.from_pretrained(tmp_path / name), held_out))
    below("chains / text", lost["chains"] / lost["text"], 1)


@torch.inference_mode()
def chain_nll(network, chains):
    """Nats that a model needs for each chain, given its prompt."""
    for chain in chains:
        ids_1T = torch.tensor([chain["token_ids"]])
        nll_T = cross_entropy(network(ids_1T).logits[0, :-1].float(), ids_1T[0, 1:], reduction="none")
        yield nll_T[chain["prompt_tokens"] - 1 :].sum().item()
