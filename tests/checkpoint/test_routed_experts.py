"""Routed experts: run as transformers runs them, and observed as a loop over single tokens would."""

import json
import weakref

import pytest
import torch
from random_models import make_random_model
from torch.nn import functional
from transformers import AutoModelForCausalLM

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.experts import Routed, StorageCopies, experts_in, observe_experts
from prunus.checkpoint.precision import with_even_rows
from prunus.checkpoint.runner import Batch, Runner
from prunus.errors import PrunusError
from prunus.pruning.calibration import propagation
from prunus.pruning.calibration.hidden_states import HiddenStates
from prunus.pruning.calibration.propagation import BlockRun
from prunus.pruning.calibration.statistics import Observer
from prunus.pruning.recover.training import pad
from prunus.recipes import PruneRecipe
from prunus.studies.engine import as_in_model, overwrite
from prunus.studies.variants import changed_tensors

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


@pytest.mark.slow
@torch.no_grad()
def test_filling_up_tokens_with_zeros_keeps_every_bit_in_bfloat16(tmp_path):
    config = make_random_model("qwen3_moe", tmp_path / "m")
    models = [
        AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.bfloat16, experts_implementation=name).eval()
        for name in ("eager", "prunus")
    ]
    ids_NT = ids_of(config, 4, 90)
    seen: list[Routed] = []
    with observe_experts(models[1], seen.append):
        eager, ours = (model(input_ids=ids_NT, use_cache=False).logits for model in models)
    assert torch.equal(eager, ours)
    assert all(len(routed.output_SD) == len(routed.middle_SF) == len(routed.token_S) for routed in seen)
    assert any(len(with_even_rows(routed.input_SD)) > len(routed.input_SD) for routed in seen)


def test_numbers_of_rows_are_few_and_at_most_a_quarter_larger():
    sizes = [len(with_even_rows(torch.ones(rows, 1))) for rows in range(1, 2049)]
    assert all(rows <= size <= 1.25 * rows for rows, size in enumerate(sizes, 1))
    assert len(set(sizes)) < 4 * 11 and with_even_rows(torch.ones(257, 2)).sum() == 514


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


CPU = torch.device("cpu")


def opened(folder):
    source = Checkpoint(folder)
    return source, Runner(source, torch.float32, CPU)


def rows(count=5, length=24, vocabulary=120):
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, vocabulary, (length,), generator=generator).tolist() for _ in range(count)]


def recipe_of(tmp_path, sequences=None, **changes):
    sequences = sequences or rows()
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"token_ids": row}) for row in sequences))
    common = {"calibration": str(tmp_path / "rows.jsonl"), "sequences": len(sequences), "seqlen": 24, "sparsity": 0.5}
    return PruneRecipe(**(common | changes))


@pytest.mark.slow
@torch.no_grad()
def test_padding_adds_nothing_to_what_is_observed(tmp_path):
    make_random_model("qwen3_moe", tmp_path / "m")
    source, runner = opened(tmp_path / "m")
    sequences, found = [ids[: 8 + 3 * number] for number, ids in enumerate(rows())], []
    padded, counted = pad(sequences, 48)
    assert {*map(len, padded)} == {14, 20}
    beside = HiddenStates(runner, padded[::-1], None, counted=counted[::-1])
    for hidden in (HiddenStates(runner, sequences, None), beside):
        block = runner.make_block(0, source.read_block(0))
        with Observer(runner, block, source.linears(0), needs="hessian") as seen:
            for batch, rows_NTW in hidden.batches():
                runner.run_block(block, rows_NTW, batch)
        found.append(seen.stats(0))
    alone, beside = found
    for name in alone:
        for part in ("norm_I", "mean_I", "variance_I"):
            torch.testing.assert_close(getattr(beside[name], part), getattr(alone[name], part), rtol=1e-5, atol=1e-5)
        matrices = (one[name].hessian.matrix_II for one in (beside, alone))
        torch.testing.assert_close(*matrices, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "granitemoe", "kimi_linear"])
@torch.no_grad()
def test_split_blocks_compute_the_same_bits_and_are_joined_into_the_stored_ones(tmp_path, family):
    ids_NT = ids_of(make_random_model(family, tmp_path / "m"), 2, 24)
    source, runner = opened(tmp_path / "m")
    batch = Batch(ids_NT)
    rows_NTW = runner.embed(batch)
    for index in range(source.blocks):
        tensors = source.read_block(index)
        rows_NTW = runner.run_block(runner.make_block(index, tensors), rows_NTW, batch)
        linears = {linear.name: linear for linear in source.linears(index) if linear.experts}
        for name, linear in linears.items():
            weight_OI = tensors[f"{name}.weight"]
            assert tuple(weight_OI.shape) == linear.shape_OI
            assert torch.equal(source.read_weight(index, f"{name}.weight"), weight_OI)
        every = {f"{name}.weight": tensors[f"{name}.weight"] for name in linears}
        some = {name: tensor.clone() for name, tensor in every.items() if ".3." in name}
        for changed in (every, some):
            stored = source.as_stored(index, changed)
            sources = {n for name in changed for n in source.weight_sources(index, name.removesuffix(".weight"))}
            assert sources <= set(stored)
            if family in ("qwen3_moe", "kimi_linear"):  # whose experts are stored one by one
                assert len(sources) == len(changed)
            assert all(torch.equal(tensor, source.read(name)) for name, tensor in stored.items())
    eager = whole(tmp_path / "m")(input_ids=ids_NT, use_cache=False).logits
    assert torch.equal(runner.logits(runner.states(rows_NTW, batch)), eager)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "granitemoe"])
@torch.no_grad()
def test_reading_and_writing_a_block_make_no_second_copy_of_its_experts(tmp_path, family):
    make_random_model(family, tmp_path / "m")
    source = Checkpoint(tmp_path / "m")
    alive, most = 0, 0

    def read(name):
        def freed():
            nonlocal alive
            alive -= ".experts." in name

        nonlocal alive, most
        tensor = source.read(name)
        weakref.finalize(tensor, freed)
        alive += ".experts." in name
        most = max(most, alive)
        return tensor

    tensors = source.as_block(0, read)
    names = [f"{linear.name}.weight" for linear in source.linears(0) if linear.experts]
    matrices = {name: tensors[name] for name in names}
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in matrices.values()}
    apart = family == "qwen3_moe"
    assert len(memory) == 2 and sum(memory.values()) == sum(tensor.nbytes for tensor in matrices.values())
    if apart:
        assert most <= 3, "the matrices of one expert at a time"
    stored = source.as_stored(0, matrices)
    assert len(stored) == (24 if apart else 2)
    assert all(tensor.untyped_storage().data_ptr() in memory for tensor in stored.values())
    assert all(torch.equal(tensor, source.read(name)) for name, tensor in stored.items())
    made = StorageCopies()
    copies = {name: made.of(tensor) for name, tensor in matrices.items()}
    assert all(torch.equal(tensor, matrices[name]) for name, tensor in copies.items())
    theirs = {tensor.untyped_storage().data_ptr() for tensor in copies.values()}
    assert len(theirs) == 2 and not theirs & set(memory)
    written = source.as_stored(0, copies)
    assert {tensor.untyped_storage().data_ptr() for tensor in written.values()} == theirs


def observed_by(run, monkeypatch, portion=1 << 40):
    monkeypatch.setattr(propagation, "HESSIAN_BYTES", portion)
    found, groups = {}, 0
    for group in propagation.pruned(run):
        found, groups = {**found, **group}, groups + 1
    return found, groups


@pytest.mark.slow
@torch.no_grad()
def test_experts_that_meet_few_tokens_get_the_statistics_of_all_tokens_and_hessians_come_in_portions(
    tmp_path, monkeypatch
):
    make_random_model("qwen3_moe", tmp_path / "m", num_hidden_layers=1, mlp_only_layers=[])
    source, runner = opened(tmp_path / "m")
    index, sequences = 0, rows(2, 12)
    block = runner.make_block(index, source.read_block(index))
    seen: list[Routed] = []
    inputs: list[torch.Tensor] = []

    def run():
        hidden = HiddenStates(runner, sequences, None)
        return BlockRun(runner, block, index, hidden, source.linears(index), True, "hessian")

    module = block.get_submodule("mlp.experts")
    handle = module.register_forward_pre_hook(lambda _m, args: inputs.append(args[0].clone()))
    monkeypatch.setattr("prunus.pruning.calibration.statistics.LEAST_TOKENS", 8)
    with observe_experts(block, seen.append):
        for batch, rows_NTW in run().hidden.batches():
            runner.run_block(block, rows_NTW, batch)
    handle.remove()
    counts = dict.fromkeys(range(8), 0) | {routed.expert: len(routed.token_S) for routed in seen}
    assert any(count < 8 for count in counts.values()) and any(count >= 8 for count in counts.values())
    found, groups = observed_by(run(), monkeypatch)
    assert groups == 1
    every = torch.cat(inputs)
    for expert, count in counts.items():
        own = next((routed for routed in seen if routed.expert == expert), None)
        x_SD = every if count < 8 or own is None else own.input_SD
        weights = [block.get_parameter(f"mlp.experts.{expert}.{part}.weight") for part in ("gate_proj", "up_proj")]
        middle_SF = functional.silu(x_SD @ weights[0].T) * (x_SD @ weights[1].T)
        for part, read in (("gate_proj", x_SD), ("up_proj", x_SD), ("down_proj", middle_SF)):
            stats = found[f"mlp.experts.{expert}.{part}"]
            assert stats.tokens == len(read) and stats.pooled == (count if count < 8 else None)
            torch.testing.assert_close(stats.norm_I, read.norm(dim=0), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(stats.hessian.matrix_II, read.T @ read, rtol=1e-4, atol=1e-4)
    pieces, groups = observed_by(run(), monkeypatch, portion=4 * (64**2 + 32**2) * 3)
    assert groups == 4 and set(pieces) == set(found)  # 3, 3 and 2 experts; then the Linears outside them
    assert all(torch.equal(pieces[name].hessian.matrix_II, found[name].hessian.matrix_II) for name in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"method": "magnitude"},
        {"method": "wanda", "pattern": "2:4", "sparsity": 0.5},
        {"method": "sparsegpt", "propagation": "true_sequential"},
        {"method": "sparsegpt", "propagation": "dense"},
        {"method": "alps"},
        {"method": "wanda", "update": "obs"},
        {"allocation": "owl"},
        {"method": "wanda", "group": "tensor"},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_method_prunes_experts_to_the_exact_count(tmp_path, changes):
    layers = 2 if "allocation" in changes else 1
    sizes = {"num_hidden_layers": layers, "num_experts": 4, "num_local_experts": 4, "mlp_only_layers": []}
    make_random_model("qwen3_moe", tmp_path / "m", **sizes)
    told = prunus.prune(tmp_path / "m", tmp_path / "out", recipe_of(tmp_path, **changes))
    before, made = Checkpoint(tmp_path / "m"), Checkpoint(tmp_path / "out")
    zeros = weights = 0
    for index in range(made.blocks):
        for linear in made.linears(index):
            weight_OI = made.read_weight(index, f"{linear.name}.weight")
            assert changes.get("allocation") or (weight_OI == 0).sum() == weight_OI.numel() // 2
            zeros, weights = zeros + int((weight_OI == 0).sum()), weights + weight_OI.numel()
    assert zeros == weights // 2 and told.sparsity == 0.5
    assert told.linears == sum(len(before.linears(index)) for index in range(before.blocks))
    assert len(told.linear_sparsity) == 7 * layers
    assert "model.layers.0.mlp.experts.*.gate_proj" in told.linear_sparsity
    few = [line for line in told.warnings if "routed experts met fewer than 64 calibration tokens" in line]
    assert len(few) == (changes.get("method") != "magnitude")
    whole(tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"method": "alps"}], ids=str)
def test_a_block_without_experts_stays_as_it_is_where_only_experts_are_pruned(tmp_path, changes):
    make_random_model("qwen3_moe", tmp_path / "m", num_hidden_layers=2, mlp_only_layers=[1])
    told = prunus.prune(tmp_path / "m", tmp_path / "out", recipe_of(tmp_path, scope="experts", **changes))
    assert told.sparsity == 0.5 and all(".mlp.experts.*." in name for name in told.linear_sparsity)
    before, made = (Checkpoint(tmp_path / name).read_block(1) for name in ("m", "out"))
    assert all(torch.equal(made[name], tensor) for name, tensor in before.items())


@pytest.mark.slow
def test_scopes_of_a_mixture_of_experts(tmp_path):
    make_random_model("deepseek_v3", tmp_path / "m", num_hidden_layers=2)
    names = {}
    for scope in ("all", "attention", "mlp", "experts", "shared"):
        recipe = recipe_of(tmp_path, method="magnitude", scope=scope)
        names[scope] = set(prunus.prune(tmp_path / "m", tmp_path / scope, recipe).linear_sparsity)
    assert all(".mlp.experts.*." in name for name in names["experts"])
    assert all(".mlp.shared_experts." in name for name in names["shared"])
    assert names["experts"] | names["shared"] < names["mlp"] == names["all"] - names["attention"]
    make_random_model("llama", tmp_path / "dense")
    for scope in ("experts", "shared"):
        with pytest.raises(PrunusError, match=f"has no {'routed' if scope == 'experts' else scope} expert"):
            prunus.prune(tmp_path / "dense", tmp_path / "x", recipe_of(tmp_path, method="magnitude", scope=scope))


def test_influences_of_experts_are_refused_in_a_line(tmp_path):
    make_random_model("qwen3_moe", tmp_path / "m")
    with pytest.raises(PrunusError, match="layerif keeps a gradient of each Linear and sequence, too many for routed"):
        prunus.prune(tmp_path / "m", tmp_path / "out", recipe_of(tmp_path, allocation="layerif"))


@pytest.mark.slow
def test_an_expert_that_no_token_meets_is_named(tmp_path):
    make_random_model("qwen3_moe", tmp_path / "m")
    told = prunus.prune(tmp_path / "m", tmp_path / "out", recipe_of(tmp_path, rows(1, 2)))
    (line,) = [line for line in told.warnings if "routed experts met" in line]
    assert "never met: model.layers.0.mlp.experts." in line and " more" in line


@pytest.fixture(params=["qwen3_moe", "granitemoe"])
def pruned(request, tmp_path):
    """A folder with a mixture `m` whose experts are stored one by one or together, and `out`, pruned to half."""
    more = {"mlp_only_layers": []} if request.param == "qwen3_moe" else {}
    make_random_model(request.param, tmp_path / "m", num_hidden_layers=2, **more)
    prunus.prune(tmp_path / "m", tmp_path / "out", recipe_of(tmp_path))
    return tmp_path


@pytest.mark.slow
def test_inspect_counts_pruned_experts(pruned):
    found = prunus.inspect(pruned / "out").to_json()
    assert found["sparsity"] == 0.5 and found["prunable"] == sum(row["weights"] for row in found["linears"])
    row = next(row for row in found["linears"] if row["kind"].endswith("experts.*.down_proj"))
    assert row["experts"] == 8 and row["zeros"] == row["weights"] // 2 == 8 * row["shape"][0] * row["shape"][1] // 2


@pytest.mark.slow
@pytest.mark.thorough("qwen3_moe")
def test_recovery_trains_pruned_experts_and_keeps_their_zeros(pruned):
    recipe_of(pruned, rows(64))
    calibration = {"calibration": str(pruned / "rows.jsonl"), "sequences": 64, "seqlen": 24, "epochs": 3}
    recipe = prunus.RecoverRecipe(**calibration, rate=0.1, step_tokens=96)
    told = prunus.recover(pruned / "out", pruned / "new", recipe, dense=pruned / "m")
    assert told.recovered and told.error_after < told.error_before
    before, after = Checkpoint(pruned / "out"), Checkpoint(pruned / "new")
    changed = 0
    for index in range(before.blocks):
        for linear in (linear for linear in before.linears(index) if linear.experts):
            old, new = (one.read_weight(index, f"{linear.name}.weight") for one in (before, after))
            assert torch.equal(old == 0, new == 0)
            changed += int((old != new).sum())
    assert changed > 1000


@pytest.mark.thorough
def test_saved_statistics_prune_experts_as_measuring_again_does(pruned):
    recipe = {"calibration": str(pruned / "rows.jsonl"), "sequences": 5, "seqlen": 24}
    prunus.stats(pruned / "m", pruned / "s.safetensors", hessians=True, **recipe)
    dense = {"method": "sparsegpt", "sparsity": 0.5, "propagation": "dense"}
    prunus.prune(pruned / "m", pruned / "a", PruneRecipe(**dense), stats=pruned / "s.safetensors")
    prunus.prune(pruned / "m", pruned / "b", PruneRecipe(**dense, **recipe))
    assert (pruned / "a/model.safetensors").read_bytes() == (pruned / "b/model.safetensors").read_bytes()


@pytest.mark.slow
def test_saved_statistics_know_which_experts_met_too_few_tokens(pruned, monkeypatch):
    monkeypatch.setattr("prunus.pruning.calibration.statistics.LEAST_TOKENS", 25)
    recipe = {"calibration": str(pruned / "rows.jsonl"), "sequences": 5, "seqlen": 24}
    told = prunus.stats(pruned / "m", pruned / "s.safetensors", **recipe)
    dense = {"method": "wanda", "sparsity": 0.5, "propagation": "dense"}
    saved = prunus.prune(pruned / "m", pruned / "a", PruneRecipe(**dense), stats=pruned / "s.safetensors")
    again = prunus.prune(pruned / "m", pruned / "b", PruneRecipe(**dense, **recipe))
    assert (pruned / "a/model.safetensors").read_bytes() == (pruned / "b/model.safetensors").read_bytes()
    assert saved.warnings == again.warnings[-1:]
    (line,) = [line for line in again.warnings if "routed experts met fewer than 25 calibration tokens" in line]
    assert line.replace("were pruned by their", "have the") in told.warnings


@torch.no_grad()
def test_a_studys_variant_of_experts_is_swapped_into_the_loaded_model(pruned):
    source, made = Checkpoint(pruned / "m"), Checkpoint(pruned / "out")
    model = whole(pruned / "m")
    stored = ((name, place.read()) for name, place in changed_tensors(source, made, [0, 1]))
    for name, tensor in as_in_model(source, stored):
        overwrite(model, name, tensor)
    theirs = dict(whole(pruned / "out").named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in model.named_parameters())


@pytest.mark.slow
def test_blocks_of_a_pruned_mixture_can_be_dropped(pruned):
    prunus.drop(pruned / "out", pruned / "short", prunus.DropRecipe(blocks="0,"))
    short, long = Checkpoint(pruned / "short"), Checkpoint(pruned / "out")
    for name, tensor in long.read_block(1).items():
        assert torch.equal(short.read_block(0)[name], tensor)
