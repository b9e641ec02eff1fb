"""Models of other kinds than the three that most tests use: evaluated, made sparse, packed, swapped, refused."""

import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from random_models import make_random_model
from safetensors.torch import load_file, save_file
from small_study import write_study
from tiny_chains import complete
from tiny_models import VOCABULARY
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaModel

import prunus
from prunus.checkpoint import checkpoint as checkpoint_module
from prunus.checkpoint.architecture import find_layers
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.model_folder import UNLIMITED, ModelFolder
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.backends.hf import HFBackend, load_model
from prunus.evaluation.backends.openai import OpenAIBackend
from prunus.evaluation.backends.rows import PaddedRows, SeparateRows, rows_for
from prunus.evaluation.backends.vllm import adds_nothing, dtype_for, weights
from prunus.evaluation.provenance import describe_model, open_for
from prunus.evaluation.requests import Sampling
from prunus.evaluation.resolved_plan import resolve_plan
from prunus.pruning.calibration import hidden_states as fits
from prunus.recipes import EvalPlan, PruneRecipe
from prunus.settings.engines import EngineOptions
from prunus.store.labels import label
from prunus.store.rows import Run
from prunus.store.store import Store
from prunus.studies.cells import open_model
from prunus.studies.engine import blocks_kept, swapped
from prunus.studies.file import read_study
from prunus.studies.variants import make_variant

pytestmark = pytest.mark.filterwarnings("ignore")  # of transformers, about its own models

OWN, THEIRS, ALONE = "side by side, our masks", "side by side, their masks", "one by one"
# How a model's rows decode. Windows are 8 tokens wide here, so that it matters who heeds them.
ROWS = {
    "llama": OWN,
    "olmo2": OWN,
    "deepseek_v3": OWN,
    "mistral": THEIRS,
    "phi3": THEIRS,
    "mixtral": THEIRS,
    "gemma3": THEIRS,  # with a vision tower
    "gpt_oss": THEIRS,
    "gpt_neo": THEIRS,
    "bloom": THEIRS,
    "gemma3n_text": THEIRS,
    "mamba": ALONE,
    "mamba2": ALONE,
    "bamba": ALONE,  # cannot tell by its cache what it has read
    "falcon_h1": ALONE,
    "qwen3_next": ALONE,
    "zamba2": ALONE,
}


def with_tokenizer(model_type: str, folder: Path, **changes: Any) -> Path:
    """A random model of a type, with the tokenizer of the built-in reasoner."""
    make_random_model(model_type, folder, vocab_size=VOCABULARY, **changes)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(tiny_folder() / name, folder / name)
    return folder


def whole(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def sentences(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 100, (length,), generator=generator).tolist() for length in lengths]


@torch.inference_mode()
def next_logits(model: Any, texts: list[list[int]]) -> torch.Tensor:
    """Of each text read alone and at once, without a cache."""
    return torch.stack([model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1] for ids in texts])


@torch.inference_mode()
def last_logits(model: Any, texts: list[list[int]], count: int) -> list[torch.Tensor]:
    """The same for each text without its last count - 1 tokens, ..., without its last token, and whole: a text is read
    once, as no token looks ahead."""
    read = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -count:] for ids in texts]
    return list(torch.stack(read, dim=1))


@pytest.mark.thorough("llama", "gpt_oss", "mamba2", "deepseek_v3")
@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("model_type", ROWS)
def test_rows_give_the_logits_of_each_text_alone(tmp_path, model_type):
    make_random_model(model_type, tmp_path, **({"attn_layer_indices": [1, 3]} if model_type == "bamba" else {}))
    model, texts = whole(tmp_path), sentences(5, 17, 12)
    rows = rows_for(model)(texts)
    kind = (
        ALONE if isinstance(rows, SeparateRows) else OWN if isinstance(rows, PaddedRows) and rows._own_masks else THEIRS
    )
    assert kind == ROWS[model_type]
    found, expected = [rows.prefill().clone()], []
    for first in (0, 4):
        for step in range(first, first + 4):
            ids = [3 + 7 * step + row for row in range(3)]
            texts = [[*text, token] for text, token in zip(texts, ids, strict=True)]
            found.append(rows.step(ids).clone())
        expected += last_logits(model, texts, len(found) - len(expected))
        rows.select([1, 0, 1])
        texts = [texts[row] for row in (1, 0, 1)]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["mistral", "gpt_neo", "mamba2"])
def test_greedy_equals_generate_of_transformers(tmp_path, model_type):
    make_random_model(model_type, tmp_path)
    model, texts, nothing = whole(tmp_path), sentences(4, 15), frozenset[int]()
    found = complete(HFBackend(model, 128), texts, [12, 12], nothing, nothing, [0, 0], Sampling(0.0))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = [model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist() for ids in texts]
    assert [completion.ids for completion in found] == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "words"),
    [("bert", "bert returns no cache"), ("moshi", "moshi computes other logits with a cache")],
)
def test_a_model_that_cannot_decode_is_refused(tmp_path, model_type, words):
    make_random_model(model_type, tmp_path)
    with pytest.raises(PrunusError, match=words):
        rows_for(whole(tmp_path))


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("model_type", ["axk2", "deepseek_v32", "glm_moe_dsa", "hy_v4"])
def test_transformers_own_cache_differs_where_tokens_are_chosen(tmp_path, model_type):
    """docs/models.md says so: token by token as at once up to index_topk tokens (8 here), otherwise beyond."""
    make_random_model(model_type, tmp_path)
    model, (text,) = whole(tmp_path), sentences(20)
    cache, found = None, []
    for token in text:
        output = model(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        found.append(output.logits[0, -1])
    expected = [next_logits(model, [text[: length + 1]])[0] for length in range(len(text))]
    for ours, theirs in zip(found[:8], expected[:8], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    if version("transformers") == models.read_data()["transformers"]:
        assert not torch.allclose(found[-1], expected[-1], rtol=1e-3, atol=1e-3)


EVALUATED = (
    "mistral",
    "phi3",
    "gemma2",
    "olmo2",
    "bloom",
    "cohere2",
    "mixtral",
    "deepseek_v3",
    "gpt_oss",
    "falcon_h1",
    "mamba2",
    "qwen3_next",
)
PRUNED = "phi3"


@pytest.mark.thorough
@pytest.mark.slow
def test_eval_and_compare_any_family(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.jsonl").write_text(json.dumps({"id": "p", "problem": "1+1?", "answer": "2"}))
    for model_type in EVALUATED:
        with_tokenizer(model_type, Path(model_type))
    assert not main_ends(["prune", PRUNED, "half", "--method", "magnitude", "--sparsity", "0.5"])
    plan = ["--task", "t.jsonl", "--samples", "2", "--budgets", "0,6", "--answer-tokens", "3", "--profile", "tiny"]
    for folder in (*EVALUATED, "half"):
        assert not main_ends(["eval", folder, *plan, "--device", "cpu"])
    capsys.readouterr()
    assert not main_ends(["compare", "results.db", "--base", PRUNED])
    said = capsys.readouterr().out
    assert "Magnitude 50" in said
    assert all(model_type in said for model_type in EVALUATED)
    with Store(Path("results.db")) as store:
        runs = {run.model.name: run for run in store.runs()}
        assert set(runs) == {*EVALUATED, "half"}
        assert all(len(store.samples(run.run_id)) == 4 for run in runs.values())
        assert {name: run.model.blocks for name, run in runs.items()} == dict.fromkeys(runs, 4)


def main_ends(words: list[str]) -> int:
    """The command's exit code."""
    try:
        main(words)
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


MAGNITUDE = '[[prune]]\nmethod = "magnitude"\n'
SWAPPED = {
    "mixtral": MAGNITUDE,
    "nemotron_h": MAGNITUDE,
    "gpt_oss": MAGNITUDE,
    "falcon_h1": MAGNITUDE,
    "bamba": MAGNITUDE,
    "gpt2": MAGNITUDE,
    "phi3": MAGNITUDE + '[[drop]]\nblocks = "1"\nmethod = "tail"\n',
    "gemma2": '[[drop]]\nblocks = "0,2"\n',
}


@pytest.mark.thorough("phi3", "gpt_oss")
@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("model_type", SWAPPED)
def test_variants_go_in_and_out_of_any_model(tmp_path, model_type):
    """In: what a model loaded from the variant's own checkpoint says. Out: the weights of before."""
    longer = "n_positions" if model_type == "gpt2" else "max_position_embeddings"
    with_tokenizer(model_type, tmp_path / "model", **{longer: 256})
    study = read_study(write_study(tmp_path, recipes=SWAPPED[model_type]))
    model = open_model(study, study.models[0], tmp_path / "model")
    loaded = load_model(tmp_path / "model", "cpu")
    before = {name: tensor.clone() for name, tensor in loaded.state_dict().items()}
    ids_NT = torch.tensor(sentences(14))
    for variant in model.variants[1:]:
        make_variant(model, variant, tmp_path / "out", "cpu", keep=True)
        own = load_model(tmp_path / "out" / "checkpoints" / "model" / variant.name, "cpu")
        with swapped(loaded, model.source, tmp_path / "out", variant):
            found, expected = (m(input_ids=ids_NT, use_cache=False).logits for m in (loaded, own))
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found, loaded(input_ids=ids_NT, use_cache=False).logits, atol=1e-2)
        assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.slow
def test_blocks_that_cannot_be_left_out_in_memory_are_refused(tmp_path):
    """gemma3n's last blocks share keys and values of earlier ones; glm_moe_dsa's read what an earlier one chose."""
    for model_type, kept, words in (
        ("gemma3n_text", [0, 2, 3, 4, 5], "gemma3n_text cannot be run in memory without some of its blocks"),
        ("glm_moe_dsa", [1, 2, 3], "an earlier block of glm_moe_dsa computes a tensor that a later one needs"),
    ):
        make_random_model(model_type, tmp_path / model_type)
        model = whole(tmp_path / model_type)
        with pytest.raises(PrunusError, match=words), blocks_kept(model, kept):
            pass
        assert len(find_layers(model)[1]) == model.config.num_hidden_layers == max(kept) + 1


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize("model_type", ["mixtral", "olmo2", "falcon_h1"])
def test_a_block_that_vllm_leaves_out_is_given_weights_that_add_nothing(tmp_path, model_type):
    make_random_model(model_type, tmp_path / "m")
    source = Checkpoint(tmp_path / "m")
    given = dict(weights(source, {}, [1]))
    save_file(given, tmp_path / "m" / "model.safetensors", {"format": "pt"})
    seen = []
    model = whole(tmp_path / "m")
    for layer in find_layers(model)[1][1:3]:
        layer.register_forward_pre_hook(lambda _m, args, kwargs: seen.append(hidden_of(args, kwargs)), with_kwargs=True)
    model(input_ids=torch.tensor(sentences(9)), use_cache=False)
    assert torch.equal(*seen)


def hidden_of(args, kwargs):
    return (args[0] if args else kwargs["hidden_states"]).clone()


def test_vllm_does_not_leave_out_blocks_that_do_more_than_add(tmp_path):
    make_random_model("doge", tmp_path)
    source = Checkpoint(tmp_path)
    assert not adds_nothing(source.architecture, 1)
    with pytest.raises(PrunusError, match=r"vLLM cannot leave out blocks of .* \(doge\)"):
        dict(weights(source, {}, [1]))
    assert set(dict(weights(source, {}, []))) == set(source.tensors)


# What is refused


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def code_in(folder: Path) -> None:
    """A model with code of its own, which would leave a file behind if it were run."""
    (folder / "own.py").write_text(f"open({str(folder.parent / 'ran')!r}, 'w')\n")
    edit(folder, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"})


def take(name: str) -> Any:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.pop(name))


def rename(old: str, new: str) -> Any:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({new: tensors.pop(old)}))


def add(*names: str) -> Any:
    return lambda folder: edit_tensors(folder, lambda tensors: tensors.update({n: torch.zeros(2) for n in names}))


EXPERT, SHARED = "model.layers.2.block_sparse_moe.experts.5.w3.weight", "model.layers.1.mlp.shared_experts."
INSTALLED = version("transformers")
# Type of a random model, what is done to its folder, and what the line says.
REFUSED = {
    "a later type": (
        "llama",
        lambda folder: edit(folder, model_type="llama9", transformers_version="7.1.0"),
        f"model_type 'llama9' is not known to transformers {INSTALLED}; a newer one may know it (pip install -U"
        " transformers; config.json was written by 7.1.0)",
    ),
    "own code": ("llama", code_in, "model_type 'own' needs its own code, which prunus never runs"),
    "no list of blocks": ("cpmant", None, "cannot be run block by block: its list of blocks cannot be identified"),
    "blocks between blocks": ("dory", None, "cannot be run block by block: block 0 is called as number 4"),
    "mixed streams": ("inkling2_text", None, "an argument of block 3 depends on earlier hidden states"),
    "encoder": ("bert", None, "its tokens attend to later ones, so it is an encoder, which prunus does not prune"),
    "half": ("bart", None, "it is part of an encoder-decoder model, which prunus does not prune"),
    "expert missing": ("mixtral", take(EXPERT), f"lacks the tensor '{EXPERT}'"),
    "narrower experts": (
        "mixtral",
        lambda folder: edit(folder, intermediate_size=64),
        "'model.layers.0.mlp.experts.gate_up_proj' is made of tensors on disk that give (8, 192, 64), but config.json",
    ),
    "one expert narrower": (
        "mixtral",
        lambda folder: edit_tensors(folder, lambda tensors: tensors.update({EXPERT: torch.zeros(64, 64)})),
        f"'{EXPERT}' is (64, 64), but '{EXPERT.replace('5', '0')}' is (96, 64)",
    ),
    "unknown name": (
        "llama",
        rename("model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.above.weight"),
        "lacks the tensor 'model.layers.1.mlp.up_proj.weight'",
    ),
    "tensors too many": (
        "llama",
        add("model.layers.1.mlp.up_proj.bias", "model.layers.2.mlp.up_proj.bias"),
        "holds 'model.layers.1.mlp.up_proj.bias' and 1 more, for which llama as config.json describes it has no place",
    ),
    "blocks too many": ("llama", lambda folder: edit(folder, num_hidden_layers=3), "holds 'model.layers.3."),
    "shared experts": ("deepseek_v3", take(SHARED + "up_proj.weight"), f"lacks the tensor '{SHARED}up_proj.weight'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("problem", REFUSED)
def test_what_cannot_be_pruned_is_one_line_exit_2_and_nothing_is_written(tmp_path, capsys, problem):
    model_type, spoil, words = REFUSED[problem]
    make_random_model(model_type, tmp_path / "m")
    if spoil is not None:
        spoil(tmp_path / "m")
    ids = torch.randint(3, 100, (2, 8), generator=torch.Generator().manual_seed(0)).tolist()
    (tmp_path / "ids.jsonl").write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in ids))
    before = sorted(tmp_path.rglob("*"))
    drop = ["drop", "--blocks", "1", "--calibration", str(tmp_path / "ids.jsonl")]
    for command in (["prune", "--method", "magnitude"], drop):
        capsys.readouterr()
        assert main_ends([command[0], str(tmp_path / "m"), str(tmp_path / "out"), *command[1:]]) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[transformers]")]
        assert len(said) == 1
        assert words in said[0]
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_what_transformers_leaves_out_without_a_word_is_kept_bit_for_bit(tmp_path):
    """Old llamas hold a buffer in every block; glm4_moe a block that predicts a second token."""
    for model_type, name in (
        ("llama", "model.layers.1.self_attn.rotary_emb.inv_freq"),
        ("glm4_moe", "model.layers.92.mlp.up_proj.weight"),
    ):
        make_random_model(model_type, tmp_path / model_type)
        edit_tensors(tmp_path / model_type, lambda tensors, name=name: tensors.update({name: torch.rand(3, 4)}))
        prunus.prune(tmp_path / model_type, tmp_path / f"{model_type}-half", PruneRecipe(method="magnitude"))
        made, source = Checkpoint(tmp_path / f"{model_type}-half"), Checkpoint(tmp_path / model_type)
        assert torch.equal(made.read(name), source.read(name))


@pytest.mark.slow
def test_blocks_that_share_weights_are_refused(tmp_path, capsys):
    make_random_model("zamba", tmp_path / "m")
    assert main_ends(["prune", str(tmp_path / "m"), str(tmp_path / "out"), "--method", "magnitude"]) == 2
    assert "(zamba): blocks share weights, so they cannot be pruned one by one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_blocks_that_are_one_are_refused(tmp_path, capsys, monkeypatch):
    make_random_model("llama", tmp_path / "m")
    init = LlamaModel.__init__

    def tied(self, config):
        init(self, config)
        self.layers = torch.nn.ModuleList([self.layers[0]] * len(self.layers))

    monkeypatch.setattr(LlamaModel, "__init__", tied)
    monkeypatch.setattr(checkpoint_module, "_architectures", {})
    assert main_ends(["prune", str(tmp_path / "m"), str(tmp_path / "out"), "--method", "magnitude"]) == 2
    assert "cannot be run block by block: blocks are called more than once" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_block_that_memory_cannot_hold_is_refused_before_anything_is_done(tmp_path, capsys, monkeypatch):
    make_random_model("phi3", tmp_path / "m")
    numbers = [sum(s.elements for s in Checkpoint(tmp_path / "m").block_tensors(index).values()) for index in range(4)]
    (tmp_path / "ids.jsonl").write_text(json.dumps({"token_ids": sentences(16)[0]}) + "\n")
    ids = ["--calibration", str(tmp_path / "ids.jsonl"), "--sequences", "1", "--seqlen", "16"]
    commands = {
        "prune": ["out", "--method", "magnitude"],
        "stats": ["out", *ids],
        "drop": ["out", "--method", "shortgpt", *ids],
        "allocate": ["--allocation", "owl", *ids],
    }
    before = sorted(tmp_path.rglob("*"))
    for command, words in commands.items():
        paths = [str(tmp_path / word) if word == "out" else word for word in words]
        monkeypatch.setattr(fits, "free_memory", lambda: 4 * max(numbers) - 1)
        capsys.readouterr()
        assert main_ends([command, str(tmp_path / "m"), *paths]) == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == 1
        assert "its largest block in float32 takes " in said[0]
        assert "kB of memory, and" in said[0]
        assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(fits, "free_memory", lambda: 4 * max(numbers))
    assert not main_ends(["prune", str(tmp_path / "m"), str(tmp_path / "out"), "--method", "magnitude"])


def test_a_tokenizer_with_code_of_its_own_is_refused(tmp_path):
    with_tokenizer("llama", tmp_path / "m")
    settings = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (tmp_path / "m" / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "m" / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(PrunusError, match=r"tokenizer in .* needs its own code, which prunus never runs"):
        load_tokenizer(tmp_path / "m")
    assert not (tmp_path / "ran").exists()


# What others serve


def quantised(folder: Path) -> Path:
    """A model as FP8 checkpoints come, with tensors that only their own kernels read."""
    with_tokenizer("qwen3", folder)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("_proj.weight")]:
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.ones(1, 1)

    edit_tensors(folder, change)
    edit(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    return folder


@pytest.mark.slow
def test_a_quantised_model_is_opened_for_engines_that_read_it_and_tables_say_so(tmp_path):
    folder = quantised(tmp_path / "m")
    found = open_for("openai", folder)
    assert (found.quantised, found.blocks, found.context) == ("fp8", 4, 128)
    work = resolve_plan(
        found, load_tokenizer(folder), EvalPlan(tasks=("tiny",), limit=1, budgets=(4,), answer_tokens=4)
    )
    described = describe_model(folder, found)
    assert described.checksum == found.checksum() != Checkpoint(with_tokenizer("qwen3", tmp_path / "d")).checksum()
    assert label(Run.of(work.run_id, described, work.plan, {}).model.manifest.history) == "fp8"
    assert dtype_for(folder, "cpu") == "auto"


@pytest.mark.slow
def test_any_model_is_opened_for_its_config_and_tokenizer(tmp_path):
    """Also one that cannot be run block by block; a context that is not given has no end."""
    for model_type, blocks, context in (("inkling2_text", 6, None), ("mamba2", 4, UNLIMITED), ("gemma3", 4, 128)):
        make_random_model(model_type, tmp_path / model_type)
        found = ModelFolder(tmp_path / model_type)
        assert found.blocks == blocks
        assert context is None or found.context == context
        assert found.parameters == sum(stored.elements for stored in found.tensors.values()) > 0


def test_a_server_may_have_a_model_of_several_parts(tmp_path):
    with_tokenizer("gemma3", tmp_path)
    assert OpenAIBackend(tmp_path, EngineOptions(url="http://localhost:1"), 100).unknown == range(100, 128)
