"""Models that cannot be pruned: one line that names what is wrong, and nothing left behind."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_model, random_rows

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.recipes import PruneRecipe


def edit_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def to_pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def index_without_file(folder):
    weight_map = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_outside(folder):
    weight_map = {"model.norm.weight": "../secret.safetensors"}
    (folder.parent / "secret.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def index_with_too_much(folder):
    weight_map = dict.fromkeys([*load_file(folder / "model.safetensors"), "ghost"], "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def write_json(name, content):
    return lambda folder: (folder / name).write_text(json.dumps(content))


SOURCE = {"name": "m", "checksum": "0"}


def with_steps(steps):
    return write_json("prunus.json", {"prunus": "0.1.0", "format": 1, "history": steps})


def set_value(name, value):
    def change(folder):
        edit_tensors(folder, lambda tensors: tensors[name].view(-1).__setitem__(7, value))

    return change


Q1 = "model.layers.1.self_attn.q_proj.weight"
PROBLEMS = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read as JSON"),
    "config is a list": (write_json("config.json", [1]), "config.json is damaged: it holds a list"),
    "config is nothing": (
        write_json("config.json", None),
        "config.json is damaged: it holds a None",
    ),
    "family": (lambda f: edit_config(f, model_type="llama9"), "model_type 'llama9' is not known to transformers 5."),
    "own code": (
        lambda f: edit_config(f, model_type="own", auto_map={"AutoConfig": "x.Y"}),
        "model_type 'own' needs its own code, which prunus never runs",
    ),
    "other tensors": (lambda f: edit_config(f, model_type="mistral", head_dim=16), "but config.json asks for"),
    "no model type": (lambda f: edit_config(f, model_type=None), "model_type 'None' is not known"),
    "bad config value": (lambda f: edit_config(f, hidden_size="wide"), "config.json is not accepted by transformers"),
    "family is a list": (lambda f: edit_config(f, model_type=["llama"]), "model_type '['llama']' is not known"),
    "a billion blocks": (lambda f: edit_config(f, num_hidden_layers=10**9), "asks for 1000000000 blocks"),
    "no blocks": (lambda f: edit_config(f, num_hidden_layers=0), "asks for 0 blocks (num_hidden_layers)"),
    "blocks in words": (lambda f: edit_config(f, num_hidden_layers="three"), "asks for three blocks"),
    "endless rows": (lambda f: edit_config(f, intermediate_size=1 << 70), "asks for blocks that cannot be made"),
    "quantised": (
        lambda f: edit_config(f, quantization_config={"quant_method": "awq"}),
        "and only fp8, mxfp4 and compressed-tensors with integers",
    ),
    "pickled": (to_pickle, "weights only as .bin or .pt, which can run code; convert them to safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no *.safetensors file"),
    "cut off": (cut, "model.safetensors is truncated: "),
    "cut in the header": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:50]),
        "model.safetensors is damaged or not a safetensors file",
    ),
    "Git LFS": (
        lambda f: (f / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n"),
        "a pointer of Git LFS, which `git lfs pull` replaces",
    ),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "is damaged or not a safetensors file"),
    "no safetensors": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 8) + b"[1, 2, 3]" * 9),
        "is damaged or not a safetensors file",
    ),
    "tensor missing": (lambda f: edit_tensors(f, lambda t: t.pop(Q1)), f"lacks the tensor '{Q1}'"),
    "block missing": (lambda f: edit_config(f, num_hidden_layers=4), "lacks the tensor 'model.layers.3."),
    "head missing": (lambda f: edit_tensors(f, lambda t: t.pop("lm_head.weight")), "lacks the tensor 'lm_head.weight'"),
    "wrong shape": (lambda f: edit_config(f, intermediate_size=64), "is (56, 32), but config.json asks for (64, 32)"),
    "integers": (
        lambda f: edit_tensors(f, lambda t: t.update({Q1: t[Q1].to(torch.int8)})),
        f"'{Q1}' is I8; only F32, F16, BF16 can be pruned",
    ),
    "index names no file": (index_without_file, "names model-00001-of-00002.safetensors, which does not exist"),
    "index points outside": (index_outside, "names ../secret.safetensors, which does not exist"),
    "index names too much": (index_with_too_much, "lacks the tensor 'ghost'"),
    "index is a list": (write_json("model.safetensors.index.json", [1]), "does not say which file holds which tensor"),
    "index of numbers": (
        write_json("model.safetensors.index.json", {"weight_map": {"model.norm.weight": 3}}),
        "does not say which file holds which tensor",
    ),
    "history of nothing": (with_steps([{}]), "prunus.json is damaged: its history is not a list of steps"),
    **{
        f"sparsity is {sparsity}": (
            with_steps([{"action": "prune", "recipe": {}, "source": SOURCE, "warnings": [], "sparsity": sparsity}]),
            "prunus.json is damaged: history: ",
        )
        for sparsity in ([0.5], {"model.layers.0.mlp.up_proj": "x"}, {"model.layers.0.mlp.up_proj": float("inf")})
    },
    "history is a number": (with_steps(3), "prunus.json is damaged"),
    "source without a name": (
        with_steps([{"action": "prune", "recipe": {}, "source": {"checksum": "0"}, "warnings": []}]),
        "prunus.json is damaged",
    ),
    "NaN": (set_value(Q1, float("nan")), f"'{Q1}' holds NaN or infinity"),
    "infinity": (set_value("model.layers.2.mlp.up_proj.weight", float("-inf")), "up_proj.weight' holds NaN or inf"),
    "NaN outside blocks": (set_value("lm_head.weight", float("nan")), "'lm_head.weight' holds NaN"),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_bad_model_is_one_line_and_leaves_nothing(tmp_path, problem):
    spoil, words = PROBLEMS[problem]
    folder = make_model(tmp_path / "m")
    spoil(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(PrunusError) as caught:
        prunus.prune(folder, tmp_path / "out", PruneRecipe(method="magnitude"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def template(text):
    return lambda folder: (folder / "chat_template.jinja").write_text(text)


def tokenizer_setting(name, value):
    def change(folder):
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
        if name == "chat_template":
            (folder / "chat_template.jinja").unlink()

    return change


def ends(value):
    return write_json("generation_config.json", {"eos_token_id": value})


# What evaluation reads beside the weights.
BESIDE = {
    "forbidden": (
        template("{{ messages.__class__.__mro__ }}"),
        "template cannot be used: access to attribute '__class",
    ),
    "too long": (template("{% for i in range(999999) %}x{% endfor %}"), "template cannot be used: Range too big"),
    "too large": (template("{{ 'x' * 10 ** 15 }}"), "template cannot be used: it takes more than 1 GiB of memory"),
    "endless": (template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "cannot be used: maximum recursion depth"),
    "no template": (template("{% for %}"), "template cannot be used: Expected an expression"),
    "refusing": (template("{{ raise_exception('not\nme') }}"), "template cannot be used: not me"),
    "no text": (template("{{ '\\ud800' }}"), "the model's chat template writes the user's text 0 times"),
    "template is a number": (
        tokenizer_setting("chat_template", 3),
        "the model's chat template writes the user's text 0 times",
    ),
    "length is a word": (tokenizer_setting("model_max_length", "x"), "the tokenizer in "),
    "tokenizer is a list": (write_json("tokenizer.json", [1]), "the tokenizer in "),
    "its settings are a list": (write_json("tokenizer_config.json", [1]), "the tokenizer in "),
    "generation is a list": (
        write_json("generation_config.json", [1]),
        "generation_config.json is damaged: it holds a list",
    ),
    "ends are a text": (ends("x"), "generation_config.json: eos_token_id must be a token id or a list of them, not x"),
    "an end is none": (ends([2, None]), "must be a token id or a list of them, not [2, None]"),
    "an end is below 0": (ends(-1), "must be a token id or a list of them, not -1"),
    "padding is a text": (write_json("generation_config.json", {"pad_token_id": "x"}), "cannot be loaded on cpu: '<'"),
    "dtype is a number": (lambda f: edit_config(f, dtype=3), "cannot be loaded on cpu: 'int' object has no attribute"),
}


@pytest.mark.slow
@pytest.mark.parametrize("problem", BESIDE)
def test_what_evaluation_cannot_read_is_one_line_exit_2(tmp_path, capsys, problem):
    spoil, words = BESIDE[problem]
    spoil(make_model(tmp_path / "m"))
    (tmp_path / "t.jsonl").write_text(json.dumps({"id": "p", "problem": "1+1?", "answer": "2"}))
    files = ("--task", str(tmp_path / "t.jsonl"), "--store", str(tmp_path / "s.db"))
    plan = ("--budgets", "0", "--answer-tokens", "2", "--profile", "tiny", "--device", "cpu")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tmp_path / "m"), *files, *plan])
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("[transformers]")]
    assert ended.value.code == 2 and len(said) == 1 and words in said[0], said


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_found_in_every_dtype_and_large_numbers_are_not(tmp_path, dtype, value):
    folder = make_model(tmp_path / "m", dtype=dtype)
    set_value(Q1, torch.finfo(dtype).max)(folder)
    set_value(Q1, torch.finfo(dtype).min)(folder)
    prunus.prune(folder, tmp_path / "out", PruneRecipe(method="magnitude"))
    set_value(Q1, value)(folder)
    with pytest.raises(PrunusError, match="holds NaN or infinity"):
        prunus.prune(folder, tmp_path / "out2", PruneRecipe(method="magnitude"))


def test_activations_that_overflow_name_block_and_linear(tmp_path):
    folder = make_model(tmp_path / "m")
    edit_tensors(folder, lambda t: t["model.layers.1.self_attn.q_proj.weight"].mul_(1e38))
    edit_tensors(folder, lambda t: t["model.layers.1.self_attn.k_proj.weight"].mul_(1e38))
    (tmp_path / "rows.jsonl").write_text(json.dumps({"token_ids": random_rows(1, 30)[0]}) + "\n")
    with pytest.raises(PrunusError, match=r"block 1, self_attn\.o_proj: its calibration inputs hold NaN") as caught:
        prunus.prune(folder, tmp_path / "out", PruneRecipe(calibration=str(tmp_path / "rows.jsonl")))
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "rows.jsonl"]


@pytest.mark.parametrize("name", ["m", "m/inside", ".", "", "..", "/", "link", "link/inside"])
def test_a_model_is_not_written_onto_or_around_itself(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_model(tmp_path / "m")
    (tmp_path / "link").symlink_to(tmp_path / "m")
    before = sorted(tmp_path.rglob("*"))
    says = "is the root of all folders" if name == "/" else "overlaps the model's own folder"
    with pytest.raises(PrunusError, match=says):
        prunus.prune("./m", name, PruneRecipe(method="magnitude"), overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no/such/folder", "model 'no/such/folder' does not exist; give a folder, a hub id such as"),
        ("./nothing", "'./nothing' does not exist"),
        ("tinny", "'tinny' does not exist"),
        ("a-file", "a-file is a file; give the folder"),
        ("empty", "empty has no config.json"),
        ("x" * 1000, "x' cannot be opened: File name too long"),
        ("no\0thing", "does not exist"),
    ],
)
def test_models_that_are_not_there(tmp_path, monkeypatch, model, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PrunusError) as caught:
        prunus.prune(model, tmp_path / "out", PruneRecipe(method="magnitude"))
    assert words in str(caught.value)


def test_hub_failures_are_one_line(tmp_path, monkeypatch):
    def offline(*_arguments, **_options):
        raise OSError("We could not connect\nto the hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(
        PrunusError,
        match=r"'org/name' is not a folder here and could not be downloaded \(is there no network\?\): We could",
    ):
        prunus.prune("org/name", tmp_path / "out", PruneRecipe(method="magnitude"))


def test_a_file_in_place_of_the_output_is_refused(tmp_path):
    folder = make_model(tmp_path / "m")
    (tmp_path / "out").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(PrunusError, match="out exists"):
            prunus.prune(folder, tmp_path / "out", PruneRecipe(method="magnitude"), overwrite=overwrite)
    assert (tmp_path / "out").read_text() == "x"


def test_unknown_devices_are_refused(tmp_path):
    folder = make_model(tmp_path / "m")
    for device in ("gpu", "cuda:77", "meta"):
        with pytest.raises(PrunusError, match=f"device '{device}' cannot be used here"):
            prunus.prune(folder, tmp_path / "out", PruneRecipe(method="magnitude"), device=device)
