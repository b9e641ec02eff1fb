"""Routed experts: run as transformers runs them, and observed as a loop over single tokens would."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from prunus.checkpoint.experts import Routed, experts_in, observe_experts
from tests.helpers.random_models import make_random_model

FAMILIES = ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "nemotron_h"]


def whole(folder, implementation="eager"):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation=implementation
    ).eval()


def ids_of(config, *shape):
    generator = torch.Generator().manual_seed(5)
    return torch.randint(3, config.vocab_size, shape, generator=generator)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_equal_transformers_eager_loop_bit_for_bit(tmp_path, family):
    ids_NT = ids_of(make_random_model(family, tmp_path / "m"), 2, 24)
    eager = whole(tmp_path / "m")(input_ids=ids_NT, use_cache=False).logits
    model, seen = whole(tmp_path / "m", "prunus"), []
    assert torch.equal(model(input_ids=ids_NT, use_cache=False).logits, eager)
    with observe_experts(model, seen.append):
        assert torch.equal(model(input_ids=ids_NT, use_cache=False).logits, eager)
    assert seen and not any("prunus_see" in module.__dict__ for module in model.modules())
    count = len(seen)
    model(input_ids=ids_NT, use_cache=False)
    assert len(seen) == count


def one_by_hand(module, expert, x_D):
    """(F,) and (D,) of one token, from the parameters' layout written out."""
    first, down = getattr(module, "gate_up_proj" if module.has_gate else "up_proj")[expert], module.down_proj[expert]
    if module.is_transposed:
        first, down = first.T, down.T
    up = first @ x_D
    if module.has_bias:
        up = up + module.gate_up_proj_bias[expert]
    middle = module._apply_gate(up) if module.has_gate else module.act_fn(up)
    out = down @ middle
    return middle, out + module.down_proj_bias[expert] if module.has_bias else out


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_seen_equals_a_loop_over_single_tokens(tmp_path, family):
    ids_NT = ids_of(make_random_model(family, tmp_path / "m"), 2, 12)
    model = whole(tmp_path / "m")
    called: dict[str, tuple] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _m, args, kwargs, name=name: called.update({name: (*args, *kwargs.values())}), with_kwargs=True
        )
        for name, module in experts_in(model).items()
    ]
    seen: list[Routed] = []
    with observe_experts(model, seen.append):
        model(input_ids=ids_NT, use_cache=False)
    for handle in handles:
        handle.remove()
    assert {routed.experts for routed in seen} == set(called)
    for name, (hidden_ND, index_NK, weight_NK) in called.items():
        module = model.get_submodule(name)
        mine = {routed.expert: routed for routed in seen if routed.experts == name}
        wanted = {expert: [] for expert in index_NK.flatten().tolist()}
        assert list(mine) == sorted(wanted)
        for token, experts in enumerate(index_NK.tolist()):
            for place, expert in enumerate(experts):
                wanted[expert].append((token, *one_by_hand(module, expert, hidden_ND[token]), weight_NK[token, place]))
        for expert, tokens in wanted.items():
            routed = mine[expert]
            order = routed.token_S.argsort()
            assert routed.token_S[order].tolist() == [token for token, *_ in tokens]
            assert torch.equal(routed.input_SD, hidden_ND[routed.token_S])
            middle_SF, out_SD, weight_S = (torch.stack(parts) for parts in list(zip(*tokens, strict=True))[1:])
            assert torch.equal(routed.weight_S[order], weight_S)
            for got, by_hand in ((routed.middle_SF, middle_SF), (routed.output_SD, out_SD)):
                torch.testing.assert_close(got[order], by_hand, rtol=2e-6, atol=2e-6 * float(by_hand.abs().max()))
