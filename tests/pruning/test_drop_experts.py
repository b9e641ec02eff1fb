"""Removing routed experts, against loops over single tokens and whole models with those experts' logits at -inf."""

import json
import random
from typing import Any

import pytest
import torch
from random_models import make_random_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import resolve
from prunus.checkpoint.writer import Partial
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.pruning.calibration.data import Calibration, load_calibration
from prunus.pruning.experts import experts as command
from prunus.pruning.experts.criteria import choose_experts
from prunus.pruning.experts.measure import observe
from prunus.pruning.experts.mixtures import find_mixtures
from prunus.recipes import ExpertsRecipe, PruneRecipe, RecoverRecipe

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models
TYPES = ("qwen3_moe", "unnormalised", "mixtral", "gpt_oss", "deepseek_v3", "olmoe")
SEQUENCES = [torch.randint(3, 128, (16,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(4)]
METHODS = ("reap", "ean", "frequency", "man", "random")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a random model of each type and calibration sequences."""
    folder = tmp_path_factory.mktemp("mixtures")
    for name in TYPES:
        norm = {"norm_topk_prob": name == "qwen3_moe"} if name in ("qwen3_moe", "unnormalised") else {}
        kind = "qwen3_moe" if name == "unnormalised" else name
        changes = norm | ({"mlp_only_layers": [1]} if kind == "qwen3_moe" else {})
        make_random_model(kind, folder / name, num_hidden_layers=2, **changes)
    (folder / "rows.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in SEQUENCES))
    return folder


def recipe(made, **settings):
    return ExpertsRecipe(
        **{"calibration": str(made / "rows.jsonl"), "sequences": 4, "seqlen": 16, "keep": 0.5} | settings
    )


def measured(made, name, sequences=SEQUENCES):
    """The mixtures of a model, and what calibration shows of them."""
    source = Checkpoint(made / name)
    mixtures = find_mixtures(source)
    chosen = Calibration([list(ids) for ids in sequences], "test", [])
    return mixtures, list(observe(source, mixtures, recipe(made), chosen, torch.device("cpu")))


def whole(folder):
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, told = loaded
    assert not any(told.values()), told
    return model.eval()


def router_of(mlp):
    return mlp.router if hasattr(mlp, "router") else mlp.gate


def route(router, hidden_ND, removed=()):
    """(weights, indices) of a router, written out for the types of these tests, with the logits of some at -inf."""
    out_E = torch.zeros(len(router.weight))
    out_E[list(removed)] = -torch.inf
    logits_NE = nn.functional.linear(hidden_ND, router.weight, getattr(router, "bias", None)) + out_E
    if hasattr(router, "bias"):  # gpt_oss
        top_NK, index_NK = logits_NE.topk(router.top_k)
        return top_NK.softmax(-1), index_NK
    if hasattr(router, "e_score_correction_bias"):  # deepseek_v3
        score_NE = logits_NE.sigmoid()
        choice_NGE = (score_NE + router.e_score_correction_bias + out_E).view(len(hidden_ND), router.num_group, -1)
        best_NG = choice_NGE.topk(2)[0].sum(-1).topk(router.topk_group)[1]
        chosen_NG = torch.zeros(choice_NGE.shape[:2]).scatter_(1, best_NG, 1).bool()
        index_NK = choice_NGE.masked_fill(~chosen_NG[..., None], -torch.inf).flatten(1).topk(router.top_k)[1]
        weight_NK = score_NE.gather(1, index_NK)
        weight_NK = weight_NK / (weight_NK.sum(-1, keepdim=True) + 1e-20) if router.norm_topk_prob else weight_NK
        return weight_NK * router.routed_scaling_factor, index_NK
    top_NK, index_NK = logits_NE.softmax(-1).topk(router.top_k)
    if getattr(router, "norm_topk_prob", True):  # mixtral has no such setting, and always normalises
        top_NK = top_NK / top_NK.sum(-1, keepdim=True)
    return top_NK, index_NK


def expert(experts, number, token_D):
    """The output of one expert for one token."""
    up, down = experts.gate_up_proj[number], experts.down_proj[number]
    up, down = (up.T, down.T) if experts.is_transposed else (up, down)
    bias = (experts.gate_up_proj_bias[number], experts.down_proj_bias[number]) if experts.has_bias else (0, 0)
    return down @ experts._apply_gate((up @ token_D + bias[0])[None])[0] + bias[1]


def mixture_layers(model):
    return {i: layer.mlp for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")}


@torch.no_grad()
def layer_inputs(model, sequences=SEQUENCES):
    """What the experts of each block read, (N, D), from a pass of the whole model over the sequences."""
    layers = mixture_layers(model)
    read = {index: [] for index in layers}
    handles = [
        mlp.experts.register_forward_pre_hook(lambda _m, args, index=index: read[index].append(args[0]))
        for index, mlp in layers.items()
    ]
    for ids in sequences:
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return {index: torch.cat(parts) for index, parts in read.items()}


@torch.no_grad()
def by_hand(model):
    """{block: {method: scores}}, token by token."""
    found = {}
    for index, hidden_ND in layer_inputs(model, SEQUENCES).items():
        mlp = mixture_layers(model)[index]
        weight_NK, index_NK = route(router_of(mlp), hidden_ND)
        sums = torch.zeros(3, len(router_of(mlp).weight), dtype=torch.float64)
        for token_D, weight_K, index_K in zip(hidden_ND, weight_NK, index_NK, strict=True):
            for weight, number in zip(weight_K.double(), index_K.tolist(), strict=True):
                norm = expert(mlp.experts, number, token_D).norm().double()
                sums[:, number] += torch.stack([torch.ones(()).double(), norm, weight * norm])
        count, norm, both = sums
        found[index] = {"frequency": count, "ean": norm}
        found[index] |= {name: part / count.where(count > 0, 1) for name, part in (("reap", both), ("man", norm))}
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_fewer_experts_are_the_model_with_their_logits_at_minus_infinity(made, name, tmp_path):
    told = prunus.experts(made / name, tmp_path / "out", recipe(made), device="cpu")
    before, after = whole(made / name), whole(tmp_path / "out")
    assert told.experts == "4 of 8" and told.difference < 1e-6  # without AVX-512, sums are rounded differently
    assert told.parameters == sum(p.numel() for p in after.parameters()) + sum(
        b.numel() for n, b in after.named_buffers() if n in after.state_dict()
    )
    for index, mlp in mixture_layers(before).items():
        router, removed = router_of(mlp), told.experts_removed[index]
        assert len(removed) == 4

        def forward(hidden, router=router, removed=removed):
            hidden_ND = hidden.reshape(-1, hidden.shape[-1])
            return (None, *route(router, hidden_ND, removed))

        router.forward = forward
    ids_NT = torch.tensor(SEQUENCES)
    with torch.no_grad():
        logits = [model(input_ids=ids_NT, use_cache=False).logits for model in (before, after)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ("qwen3_moe", "unnormalised", "gpt_oss", "deepseek_v3"))
def test_scores_are_those_of_loops_over_single_tokens(made, name):
    mixtures, seen = measured(made, name)
    model = whole(made / name)
    for index, methods in by_hand(model).items():
        for method, score_E in methods.items():
            chosen = choose_experts(recipe(made, method=method), mixtures, seen)
            assert torch.tensor(chosen.scores[index]).double().sub(score_E).abs().max() <= 1e-5 * score_E.max()
            groups = mixtures[0].groups
            best = [
                group * 8 // groups + expert
                for group, part in enumerate(score_E.view(groups, -1))
                for expert in part.argsort(descending=True)[: 4 // groups].tolist()
            ]
            assert chosen.kept[index] == sorted(best)


@pytest.mark.slow
def test_the_weights_of_what_is_left_are_pruned(made, tmp_path):
    prunus.experts(made / "deepseek_v3", tmp_path / "fewer", recipe(made), device="cpu")
    common = {"calibration": str(made / "rows.jsonl"), "sequences": 4, "seqlen": 16}
    told = prunus.prune(tmp_path / "fewer", tmp_path / "out", PruneRecipe(sparsity=0.5, **common))
    before, after = Checkpoint(tmp_path / "fewer"), Checkpoint(tmp_path / "out")
    routed = [linear for index in range(2) for linear in after.linears(index) if linear.experts]
    assert len(routed) == 4 * 3 and told.sparsity == 0.5
    for index in range(2):
        for linear in after.linears(index):
            old, new = (one.read_weight(index, f"{linear.name}.weight") for one in (before, after))
            assert (new == 0).sum() == new.numel() // 2 and torch.equal(new[new != 0], old[new != 0])
    assert [step["action"] for step in after.manifest.data["history"]] == ["experts", "prune"]
    whole(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("name", ("qwen3_moe", "unnormalised", "tiny-moe"))
@torch.no_grad()
def test_reap_keeps_the_experts_of_the_authors_procedure(made, name, tmp_path):
    """CerebrasResearch/reap: all experts on all tokens, softmax over all, divided by the chosen ones' sum if the model
    does; the mean over an expert's tokens; the same number of the lowest is removed in each layer."""
    folder = resolve(name) if name == "tiny-moe" else made / name
    own = {"calibration": "tiny", "sequences": 2, "seqlen": 96, "dtype": "float32"} if name == "tiny-moe" else {}
    asked = recipe(made, keep=0.75, **own)
    chosen = prunus.experts(folder, tmp_path / "out", asked, device="cpu")
    model = whole(folder)
    for index, hidden_ND in layer_inputs(model, load_calibration(asked, Checkpoint(folder)).sequences).items():
        mlp = mixture_layers(model)[index]
        all_END = torch.stack([torch.stack([expert(mlp.experts, e, x) for x in hidden_ND]) for e in range(8)])
        weight_NE = nn.functional.linear(hidden_ND, mlp.gate.weight).softmax(-1)
        index_NK = weight_NE.topk(mlp.gate.top_k)[1]
        if model.config.norm_topk_prob:
            weight_NE = weight_NE / weight_NE.gather(1, index_NK).sum(-1, keepdim=True)
        saliency_E = torch.zeros(8)
        for e in range(8):
            active = (index_NK == e).any(-1)
            if active.any():
                saliency_E[e] = (all_END[e, active].norm(dim=-1) * weight_NE[active, e]).mean()
        assert chosen.experts_removed[index] == sorted(saliency_E.topk(2, largest=False)[1].tolist())


@pytest.mark.slow
def test_smaller_shares_keep_experts_of_larger_ones(made):
    mixtures, seen = measured(made, "mixtral")
    for method in METHODS:
        kept = []
        for drop in (2, 4, 6):
            chosen = choose_experts(recipe(made, method=method, keep=None, drop=drop), mixtures, seen).kept
            kept.append({(index, number) for index, numbers in chosen.items() for number in numbers})
        assert kept[0] > kept[1] > kept[2] and len(kept[2]) == 4


@pytest.mark.slow
def test_interrupted_work_resumes_to_the_same_bytes(made, tmp_path, monkeypatch):
    asked = recipe(made, keep=0.75)
    prunus.experts(made / "olmoe", tmp_path / "whole", asked, device="cpu")

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    write = Partial.write_block

    def write_one(self, index, *rest):
        return stop() if index else write(self, index, *rest)

    for owner, name, stopping in ((Partial, "write_block", write_one), (command, "verify", stop)):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(owner, name, stopping)
            prunus.experts(made / "olmoe", tmp_path / "out", asked, device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(command, "measure_routing", stop)  # the choice is kept
        prunus.experts(made / "olmoe", tmp_path / "out", asked, device="cpu")
    for file in sorted((tmp_path / "whole").iterdir()):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes(), file.name


@pytest.mark.slow
def test_what_cannot_be_done_is_one_line(made, tmp_path, monkeypatch):
    make_random_model("llama", tmp_path / "llama")
    cases = {
        "1 of 8 experts do not fit the router, which chooses 2 for each token: keep at least 2": (
            "mixtral",
            {"keep": 0.125},
        ),
        "llama) has no routed experts": (tmp_path / "llama", {}),
        "2 for each token, from 1 of 2 groups of equal size (n_group): keep a multiple of 2, at least 4": (
            "deepseek_v3",
            {"keep": None, "drop": 3},
        ),
        "2 of 8 experts do not fit the router": ("deepseek_v3", {"keep": 0.25}),
        "drop 8 would keep 0 of 8 experts": ("mixtral", {"keep": None, "drop": 8}),
        "keep 0.99 would keep 8 of 8 experts": ("mixtral", {"keep": 0.99}),
        "--keep and --drop both set": ("mixtral", {"drop": 1}),
    }
    for message, (name, settings) in cases.items():
        with pytest.raises(PrunusError) as caught:
            prunus.experts(made / name, tmp_path / "out", recipe(made, **settings), device="cpu")
        assert message in str(caught.value) and "\n" not in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["llama"]


@pytest.mark.slow
def test_experts_that_no_token_met_are_said_and_go_first(made):
    mixtures, seen = measured(made, "olmoe", [SEQUENCES[0][:2]])
    chosen = choose_experts(recipe(made, keep=None, drop=4), mixtures, seen)
    met = {(one.index, number) for one in seen for number in range(8) if one.token_E[number]}
    assert 4 <= len(met) <= 8
    assert all(number in chosen.kept[index] for index, number in met)
    assert len(chosen.warnings) == 1 and f"and {15 - len(met)} more" in chosen.warnings[0]


@pytest.mark.slow
def test_statistics_in_a_file_give_the_same_models_at_any_share(made, tmp_path):
    options = {"calibration": str(made / "rows.jsonl"), "sequences": 4, "seqlen": 16}
    prunus.expert_stats(made / "deepseek_v3", tmp_path / "stats", **options, device="cpu")
    for method, keep in (("reap", 0.5), ("ean", 0.75)):
        asked = recipe(made, method=method, keep=keep)
        prunus.experts(made / "deepseek_v3", tmp_path / "once", asked, device="cpu", overwrite=True)
        settings: dict[str, Any] = {"method": method, "keep": keep}
        nested = ExpertsRecipe(**settings)
        told = prunus.experts(made / "deepseek_v3", tmp_path / method, nested, stats=tmp_path / "stats", overwrite=True)
        assert Checkpoint(tmp_path / "once").checksum() == Checkpoint(tmp_path / method).checksum()
        once, of_file = (Checkpoint(tmp_path / name).manifest.data["history"][0] for name in ("once", method))
        assert (of_file["recipe"], of_file["calibration"]["sha256"]) == (once["recipe"], once["calibration"]["sha256"])
        assert told.experts == ("4 of 8" if keep == 0.5 else "6 of 8")
    cases = {
        "holds scores of experts alone": lambda: prunus.prune(
            made / "deepseek_v3", tmp_path / "out", PruneRecipe(propagation="dense"), stats=tmp_path / "stats"
        ),
        "was measured with seqlen 16, not 12": lambda: prunus.experts(
            made / "deepseek_v3", tmp_path / "out", ExpertsRecipe(seqlen=12), stats=tmp_path / "stats"
        ),
        "statistics of another model": lambda: prunus.experts(
            made / "mixtral", tmp_path / "out", ExpertsRecipe(), stats=tmp_path / "stats"
        ),
        "method random needs no statistics": lambda: prunus.experts(
            made / "deepseek_v3", tmp_path / "out", ExpertsRecipe(method="random"), stats=tmp_path / "stats"
        ),
    }
    for message, call in cases.items():
        with pytest.raises(PrunusError, match=message):
            call()


@pytest.mark.slow
def test_the_commands_take_statistics_and_refuse_another_calibration(made, tmp_path, capsys):
    model, stats, out = (str(path) for path in (made / "mixtral", tmp_path / "stats", tmp_path / "out"))
    main(["stats", model, stats, "--experts", "--calibration", str(made / "rows.jsonl"), "--sequences", "4"])
    main(["experts", model, out, "--keep", "0.5", "--stats", stats, "--sequences", "4"])
    assert Checkpoint(tmp_path / "out").manifest.data["history"][0]["experts"]["after"] == {"0": 4, "1": 4}
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["experts", model, f"{out}2", "--keep", "0.5", "--stats", stats, "--sequences", "128"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "sequences 4, not 128" in said and len(said.strip().splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"stats", "out"}


@pytest.mark.slow
@pytest.mark.thorough
@torch.no_grad()
def test_what_is_left_is_trained_to_give_what_the_whole_mixture_gives(made, tmp_path, capsys):
    """The error before is that of transformers' whole models, on what is held out; one call gives what two do."""
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(3, 128, (16,), generator=generator).tolist() for _ in range(128)]
    (tmp_path / "many.jsonl").write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in sequences))
    settings = ["--calibration", str(tmp_path / "many.jsonl"), "--sequences", "128", "--seqlen", "16"]
    steps = ["--step-tokens", "128"]  # eight sequences
    commands = [
        ["experts", str(made / "mixtral"), str(tmp_path / "fewer"), "--keep", "0.5"],
        ["recover", str(tmp_path / "fewer"), str(tmp_path / "two"), "--epochs", "3", "--rate", "0.03", *steps],
    ]
    for words in commands:
        main([*words, *settings])
    asked = ExpertsRecipe(keep=0.5, calibration=str(tmp_path / "many.jsonl"), seqlen=16)
    recovery = RecoverRecipe.like(asked, epochs=3, rate=0.03, step_tokens=128)
    prunus.apply_steps(made / "mixtral", tmp_path / "one", [asked, recovery])
    assert "error before" in capsys.readouterr().err
    before, after, one = (load_file(tmp_path / name / "model.safetensors") for name in ("fewer", "two", "one"))
    assert before.keys() == after.keys() and all(torch.equal(one[name], after[name]) for name in after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(".experts." in name for name in changed) and not any("block_sparse_moe.gate" in name for name in changed)
    blocks = Checkpoint(tmp_path / "two").manifest.data["history"][1]["blocks"]
    assert all(block["after"] < block["before"] for block in blocks)
    batches = random.Random("0 held out").sample(range(16), 2)
    held_out = [ids for i in batches for ids in sequences[8 * i : 8 * i + 8]]
    ours, theirs = (
        [model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[1][0] for ids in held_out]
        for model in (whole(tmp_path / "fewer"), whole(made / "mixtral"))
    )
    errors = [(a - b).square().sum(-1) / b.square().sum(-1) for a, b in zip(ours, theirs, strict=True)]
    assert blocks[0]["before"] == pytest.approx(float(torch.cat(errors).mean()), rel=1e-4)
    with pytest.raises(SystemExit) as ended:
        main([*commands[0], "--recover", "--stats", "file", "--overwrite"])
    assert ended.value.code == 2 and "leave one of them out" in capsys.readouterr().err
