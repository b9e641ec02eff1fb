"""perplexity() against a direct loop over tokens."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, make_model, random_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

import prunus
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.backends.hf import load_model
from prunus.pruning.calibration import hidden_states


def by_hand(folder, windows):
    """One token after the other, each from a forward pass over what comes before it."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, count = 0.0, 0
    for ids in windows:
        for end in range(1, len(ids)):
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids[:end]])).logits[0, -1].double()
            total += torch.logsumexp(logits, 0).item() - logits[ids[end]].item()
            count += 1
    return math.exp(total / count), count


def write_rows(path, rows):
    path.write_text("".join(json.dumps({"token_ids": ids}) + "\n" for ids in rows))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_a_loop_over_tokens(tmp_path, family, tied, monkeypatch):
    folder = make_model(tmp_path / "m", family, tied=tied)
    monkeypatch.setattr(hidden_states, "LOGIT_TOKENS", 7)  # chunks that divide nothing
    long, short, tiny = random_rows(1, 50)[0], random_rows(1, 9, 1)[0], [5]
    path = write_rows(tmp_path / "rows.jsonl", [long, short, tiny])
    got = prunus.perplexity(folder, path, seqlen=20)
    value, count = by_hand(folder, [long[:20], long[20:40], short])
    assert got.perplexity == pytest.approx(value, rel=1e-5)
    assert (got.tokens, got.windows, got.seqlen) == (count, 3, 20)
    assert got.nll == pytest.approx(math.log(value), rel=1e-5)


def test_a_model_that_memory_cannot_hold_is_refused_at_the_start(tmp_path, monkeypatch, capsys):
    folder, rows = make_model(tmp_path / "m"), write_rows(tmp_path / "rows.jsonl", random_rows(1, 9))
    monkeypatch.setattr(hidden_states, "free_memory", lambda: 1000)
    with pytest.raises(SystemExit) as ended:
        main(["perplexity", str(folder), "--text", str(rows), "--seqlen", "8", "--device", "cpu"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert re.search(r"the whole model takes .* of memory, and 1.0 kB are free; end other programs, or take", line)


def test_text_is_cut_into_windows_of_its_tokens(tmp_path):
    folder = make_model(tmp_path / "m")
    text = "Compute 97-3-33. Map c g, g s. From c take 2 steps. " * 5
    (tmp_path / "a.txt").write_text(text)
    ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    got = prunus.perplexity(folder, tmp_path / "a.txt", seqlen=16)
    rows = [ids[i : i + 16] for i in range(0, len(ids) - 15, 16)]
    assert got == prunus.perplexity(folder, write_rows(tmp_path / "rows.jsonl", rows), seqlen=16)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in (text, text)))
    (tmp_path / "b.txt").write_text(text + "\n\n" + text)
    assert prunus.perplexity(folder, tmp_path / "a.jsonl", seqlen=16) == prunus.perplexity(
        folder, tmp_path / "b.txt", seqlen=16
    )


def test_tokens_takes_the_first_windows(tmp_path):
    folder = make_model(tmp_path / "m")
    rows = random_rows(4, 20)
    every = write_rows(tmp_path / "every.jsonl", rows)
    first = write_rows(tmp_path / "first.jsonl", rows[:2])
    expected = prunus.perplexity(folder, first, seqlen=20)
    assert prunus.perplexity(folder, every, seqlen=20, tokens=59) == expected
    assert prunus.perplexity(folder, every, seqlen=20, tokens=40) == expected
    assert prunus.perplexity(folder, every, seqlen=20, tokens=1).windows == 1


def test_uniform_model_has_the_perplexity_of_its_vocabulary(tmp_path):
    folder = make_model(tmp_path / "m", dtype=torch.bfloat16)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"].zero_()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = write_rows(tmp_path / "rows.jsonl", random_rows(3, 30))
    assert prunus.perplexity(folder, path, seqlen=30).perplexity == pytest.approx(368, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "content", "settings", "words"),
    [
        ("a.txt", "1 2 3", {"seqlen": 257}, "seqlen 257 must lie between 2 and the model's context of 256"),
        ("a.txt", "1 2 3", {"seqlen": 1}, "seqlen 1 must lie"),
        ("a.txt", "", {}, "has no text of at least two tokens"),
        ("a.pdf", "x", {}, "is neither a .txt nor a .jsonl file"),
        ("a.jsonl", '{"token_ids": [1, 368]}', {}, "line 1: token id 368"),
        ("a.jsonl", '{"ids": 1}', {}, "line 1: expected"),
    ],
)
def test_bad_input_is_refused(tmp_path, name, content, settings, words):
    folder = make_model(tmp_path / "m")
    (tmp_path / name).write_text(content)
    with pytest.raises(PrunusError, match=words):
        prunus.perplexity(folder, tmp_path / name, **{"seqlen": 32} | settings)


def test_a_model_that_overflows_is_reported(tmp_path):
    folder = make_model(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.up_proj.weight"):
        tensors[name] *= 1e38
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(PrunusError, match="output holds NaN or infinity"):
        prunus.perplexity(folder, write_rows(tmp_path / "rows.jsonl", random_rows(1, 9)), seqlen=9)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_hidden_layers": 2}, r"m holds 'model\.layers\.[23]\..*', of a block more than its config\.json counts"),
        ({"num_hidden_layers": 5}, r"m lacks the tensor 'model\.layers\.\d\..*' that its config\.json asks for"),
        ({"intermediate_size": 40}, r"m: 'model\.layers\.0\.mlp\..*' is \(.*\), but config\.json asks for \(.*40"),
    ],
)
def test_a_model_that_is_not_as_its_configuration_says_is_refused(tmp_path, change, words):
    """transformers initialises at random what is missing, and leaves out what is too much: both are other models."""
    folder, rows = make_model(tmp_path / "m"), write_rows(tmp_path / "rows.jsonl", random_rows(2, 20))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    for call in (lambda: prunus.perplexity(folder, rows, seqlen=20), lambda: load_model(folder)):
        with pytest.raises(PrunusError, match=words):
            call()
