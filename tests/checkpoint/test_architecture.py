"""Any decoder of transformers, run block by block: equal to the whole model, or refused by the check that it fails."""

from importlib.metadata import version
from typing import Any

import pytest
import torch
from random_models import TYPES, make_random_model, tiny_config
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaModel
from whole_models import MODELS, NOT_RUN, REFUSED, RUN, read_block

from prunus.checkpoint import architecture
from prunus.checkpoint.architecture import Architecture, Carried, Unstreamable, skeleton
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.linears import check_decoder, find_linears
from prunus.checkpoint.resolve import load_config
from prunus.checkpoint.runner import Batch, Runner


def test_most_types_are_run():
    """An older transformers lacks some types, and the options of others by which they are made tiny."""
    current = version("transformers") == MODELS["transformers"]
    assert not current or not set(NOT_RUN) - set(TYPES)
    assert len(set(RUN) - set(REFUSED)) >= (160 if current else 140)


# Their blocks stream, but let a token see later ones.
LOOK_AHEAD = (
    *("bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert"),
    *("rembert", "roberta", "roberta-prelayernorm", "roformer", "xlm-roberta", "xlm-roberta-xl"),
)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["bert", "roformer", "llama", "recurrent_gemma", "mamba2", "mixtral"])
def test_what_lets_a_token_see_later_ones_is_no_decoder(tmp_path, model_type):
    make_random_model(model_type, tmp_path)
    architecture = Architecture(skeleton(load_config(tmp_path), torch.float32))
    if model_type in LOOK_AHEAD:
        with pytest.raises(Unstreamable, match="its tokens attend to later ones"):
            check_decoder(architecture)
    else:
        check_decoder(architecture)


def llama_that(between, arguments=lambda hidden: {}, end=lambda outputs: outputs[-1]):
    """A forward for LlamaModel: between(hidden states, block's index, all outputs so far) is what the next block reads,
    arguments(hidden states) go to every block besides, end(all outputs) to the final norm."""

    def forward(self, input_ids, **_):
        hidden = self.embed_tokens(input_ids)
        positions = torch.arange(hidden.shape[1])[None]
        rotary = self.rotary_emb(hidden, positions)
        outputs = [hidden]
        for index, layer in enumerate(self.layers):
            read = between(hidden, index, outputs)
            hidden = layer(read, position_embeddings=rotary, **arguments(hidden))
            outputs.append(hidden)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(end(outputs)))

    return forward


def opened():
    return Architecture(skeleton(tiny_config("llama"), torch.float32))


def unchanged(hidden, _index, _outputs):
    return hidden


# A check's name, a model that only it catches, and what it says.
TRICKS = {
    "another tensor": (
        "_same",
        llama_that(lambda h, i, _: h + 1 if i == 2 else h),
        "block 2 does not read the output of block 1",
    ),
    "written to": (
        "_same",
        llama_that(lambda h, i, _: h.add_(1) if i == 2 else h),
        "block 2 does not read the output of block 1",
    ),
    "skips one": ("_same", llama_that(lambda h, i, o: o[1] if i == 2 else h), "block 2 does not read the output"),
    "argument": (
        "_has_nan",
        llama_that(unchanged, lambda h: {"bias": h.mean(1)}),
        "an argument of block 1 depends on earlier",
    ),
    "end": ("_has_nan", llama_that(unchanged, end=lambda o: o[-1] + o[1]), "after the last block reads earlier"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_only_its_check_catches_a_model_that_does_more(monkeypatch, trick):
    check, forward, says = TRICKS[trick]
    opened()
    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(Unstreamable, match=says):
        opened()
    monkeypatch.setattr(architecture, check, lambda *_: check == "_same")
    assert opened().name == "model.layers"


@pytest.mark.parametrize("again", [True, False])
def test_a_block_that_is_called_twice_or_not_at_all_is_refused(monkeypatch, again):
    def forward(self, input_ids, **_):
        hidden = self.embed_tokens(input_ids)
        for layer in [*self.layers, self.layers[0]] if again else self.layers[:-1]:
            hidden = layer(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden)

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(Unstreamable, match="called as number 4" if again else "3 of 4 blocks are called"):
        opened()


def test_blocks_that_return_tuples_are_found_out(monkeypatch):
    """Here [0] of a tensor would silently strip its axis of sequences."""
    monkeypatch.setattr(
        LlamaModel, "forward", llama_that(lambda h, i, _: h if i == 0 else h[0], end=lambda o: o[-1][0])
    )
    assert opened().outputs == 1
    monkeypatch.undo()
    assert opened().outputs == 0


def test_what_blocks_return_besides_is_carried_to_those_that_need_it():
    found = Architecture(skeleton(tiny_config("glm_moe_dsa"), torch.float32))
    assert found.outputs == 2
    assert found.carried == {Carried(block, 1) for block in range(3)}


def test_a_model_whose_blocks_are_one_object_is_refused(monkeypatch):
    init = LlamaModel.__init__

    def tied(self, config):
        init(self, config)
        self.layers = nn.ModuleList([self.layers[0]] * len(self.layers))

    monkeypatch.setattr(LlamaModel, "__init__", tied)
    with pytest.raises(Unstreamable, match="called more than once"):
        opened()


def test_hidden_states_of_another_layout_are_refused(monkeypatch):
    def forward(self, input_ids, **_):
        hidden = self.embed_tokens(input_ids).flatten(0, 1)
        for layer in self.layers:
            hidden = layer(hidden)
        return BaseModelOutputWithPast(last_hidden_state=hidden.unflatten(0, input_ids.shape))

    monkeypatch.setattr(LlamaModel, "forward", forward)
    with pytest.raises(Unstreamable, match="not laid out by sequence and token"):
        opened()


def groups(block):
    found = {}
    for linear in (linear for linear in block.linears if not linear.experts):  # test_routed_experts.py has these
        found.setdefault(linear.leader, []).append(linear.name)
    return ["+".join(name.rpartition(".")[2] for name in names) for names in found.values()]


QKV, GATE_UP = "q_proj+k_proj+v_proj", "gate_proj+up_proj"
# From the families' own code: what reads the same tensor, in the order of a forward pass.
GROUPS = {
    "llama": [QKV, "o_proj", GATE_UP, "down_proj"],
    "qwen3": [QKV, "o_proj", GATE_UP, "down_proj"],
    "olmo2": [QKV, "o_proj", GATE_UP, "down_proj"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "glm4": [QKV, "o_proj", "gate_up_proj", "down_proj"],
    "cohere2": [f"{QKV}+{GATE_UP}", "o_proj", "down_proj"],  # attention and MLP side by side
    "phi": [f"{QKV}+fc1", "dense", "fc2"],
    "nemotron": [QKV, "o_proj", "up_proj", "down_proj"],
    "falcon": ["query_key_value+dense_h_to_4h", "dense", "dense_4h_to_h"],
    "deepseek_v3": ["q_a_proj+kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj", "o_proj", GATE_UP, "down_proj"],
    "mixtral": [QKV, "o_proj"],
    "mamba": ["in_proj", "out_proj"],
}


@pytest.mark.parametrize("model_type", GROUPS)
def test_linears_are_grouped_by_the_tensor_that_they_read(model_type):
    blocks = find_linears(Architecture(skeleton(tiny_config(model_type), torch.float32)))
    assert [groups(block) for block in blocks] == [GROUPS[model_type]] * len(blocks)


def test_blocks_of_several_kinds_have_linears_of_their_own():
    conv, attention = find_linears(
        Architecture(skeleton(tiny_config("lfm2", layer_types=["conv", "full_attention"] * 2), torch.float32))
    )[:2]
    assert groups(conv) == ["in_proj", "out_proj", "w1+w3", "w2"]
    assert groups(attention) == [QKV, "out_proj", "w1+w3", "w2"]
    assert {linear.kind for linear in conv.linears} == {"attention", "mlp"}


@pytest.mark.slow
def test_what_stays_dense_is_named_with_its_reason():
    def dense(model_type):
        return find_linears(Architecture(skeleton(tiny_config(model_type), torch.float32)))[2].dense

    assert "never called" in dense("mamba")["mixer.dt_proj"]
    assert dense("qwen2_moe")["mlp.shared_expert_gate"] == "a router or gate"
    assert dense("llama4_text")["feed_forward.experts.gate_up_proj"] == "routed experts"
    assert dense("qwen3") == {}


def test_a_linear_that_no_hook_saw_stays_dense(monkeypatch):
    """Its weight is used, but not as a Linear's: what it reads is not known."""
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: x @ self.up_proj.weight.T @ self.down_proj.weight.T)
    block = find_linears(opened())[0]
    assert groups(block) == [QKV, "o_proj"]
    assert set(block.dense) == {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}


def test_linears_that_read_different_tensors_are_not_one_group(monkeypatch):
    """Equal numbers are not enough, nor is the same memory once it has been written to."""

    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj(gate * self.up_proj(x.mul_(2)))

    monkeypatch.setattr(LlamaMLP, "forward", forward)
    assert groups(find_linears(opened())[0]) == [QKV, "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.slow
def test_embeddings_are_looked_up_row_by_row_and_the_head_read_when_asked_for(tmp_path):
    make_random_model("gemma2", tmp_path, tie_word_embeddings=False)
    runner = Runner(Checkpoint(tmp_path), torch.float32, torch.device("cpu"))
    model: Any = runner.architecture.model
    runner.embed(Batch(torch.tensor([[5, 7, 5]])))
    assert model.get_input_embeddings().weight.is_meta and model.get_output_embeddings().weight.is_meta
    runner.logits(torch.zeros(1, 2, 64))
    assert model.get_input_embeddings().weight.is_meta and not model.get_output_embeddings().weight.is_meta
    assert all(parameter.is_meta for parameter in runner.architecture.layers.parameters())


@pytest.mark.slow
def test_arguments_are_recorded_anew_only_where_ids_matter(tmp_path):
    """gemma3n gives every block an input of its own, looked up by the tokens; llama's masks go by the shape."""
    batches = [Batch(torch.randint(3, 100, (2, 24))) for _ in range(3)]
    for model_type, times in (("llama", 1 + 1 + 3), ("gemma3n_text", 1 + 3 + 1 + 3)):
        make_random_model(model_type, tmp_path / model_type)
        source = Checkpoint(tmp_path / model_type)
        runner = Runner(source, torch.float32, torch.device("cpu"))
        recorded = 1  # when it was opened

        def record(ids_NT, before=runner.architecture.record, **options):
            nonlocal recorded
            recorded += 1
            return before(ids_NT, **options)

        runner.architecture.record = record
        block = runner.make_block(0, read_block(runner, source, 0))
        for batch in batches:
            runner.run_block(block, runner.embed(batch), batch)
        assert recorded == times
