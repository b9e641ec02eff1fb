"""Calibration: the sampling rule of the Wanda family, files of every kind, and what is refused."""

import json
import random
import sys
import types

import pytest
import torch
from tiny_models import VOCABULARY, make_model, random_rows, runner_of
from transformers import AutoTokenizer

import prunus
from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.errors import PrunusError
from prunus.pruning.calibration import calibration_name
from prunus.pruning.calibration import data as calibration_module
from prunus.pruning.calibration.data import load_calibration
from prunus.pruning.calibration.hidden_states import HiddenStates
from prunus.pruning.calibration.statistics import InputsSeen, Observer
from prunus.recipes import PruneRecipe


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Checkpoint(make_model(tmp_path_factory.mktemp("calibration") / "m"))


def recipe(source, **changes):
    return PruneRecipe(**{"calibration": str(source), "sequences": 8, "seqlen": 20} | changes)


def write_lines(path, key, values):
    path.write_text("".join(json.dumps({key: value}) + "\n" for value in values))
    return path


def text_of(words, seed):
    rng = random.Random(seed)
    return " ".join(
        rng.choice(["chain", "Compute", "Map", "take", "steps", "yes", "no", "12", "97", "reverse", "left"])
        for _ in range(words)
    )


def test_text_gives_the_windows_of_the_wanda_loader(model, tmp_path):
    """locuslab/wanda get_wikitext2: random.seed(s); i = randint(0, n - seqlen - 1); ids[i : i + seqlen]."""
    (tmp_path / "a.txt").write_text(text_of(300, 0))
    ids = AutoTokenizer.from_pretrained(model.folder)((tmp_path / "a.txt").read_text())["input_ids"]
    random.seed(5)
    expected = []
    for _ in range(8):
        i = random.randint(0, len(ids) - 20 - 1)
        expected.append(ids[i : i + 20])
    got = load_calibration(recipe(tmp_path / "a.txt", seed=5), model)
    assert got.sequences == expected
    assert got.tokens == 160 and got.warnings == []
    assert load_calibration(recipe(tmp_path / "a.txt", seed=6), model).sequences != expected


def test_documents_give_the_windows_of_the_wanda_loader(model, tmp_path):
    """locuslab/wanda get_c4: pick a document, again until it is longer than seqlen, then a window of it."""
    texts = [text_of(words, seed) for seed, words in enumerate([3, 60, 5, 80, 2, 90, 70, 1])]
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    random.seed(1)
    expected = []
    for _ in range(8):
        while True:
            ids = tokenizer(texts[random.randint(0, len(texts) - 1)])["input_ids"]
            if len(ids) > 20:
                break
        i = random.randint(0, len(ids) - 20 - 1)
        expected.append(ids[i : i + 20])
    path = write_lines(tmp_path / "a.jsonl", "text", texts)
    got = load_calibration(recipe(path, seed=1), model)
    assert got.sequences == expected


def test_windows_that_overlap_are_said_with_the_share_of_distinct_tokens(model, tmp_path):
    texts = [text_of(60, 0), text_of(60, 1)]
    path = write_lines(tmp_path / "a.jsonl", "text", texts)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    documents = [tokenizer(text)["input_ids"] for text in texts]
    got = load_calibration(recipe(path, sequences=9), model)
    seen = set()
    for window in got.sequences:
        (place,) = [(d, i) for d, ids in enumerate(documents) for i in range(len(ids)) if ids[i : i + 20] == window]
        seen |= {(place[0], place[1] + i) for i in range(20)}
    share = len(seen) / 180
    assert share < 0.9 and len({document for document, _ in seen}) == 2
    assert got.warnings == [
        f"{path}: 9 windows of 2 documents overlap, and only {share:.0%} of their tokens are distinct; "
        "give more text, or lower --sequences"
    ]
    (tmp_path / "a.txt").write_text(texts[0])
    (warning,) = load_calibration(recipe(tmp_path / "a.txt", sequences=5), model).warnings
    assert "5 windows of one document overlap" in warning


def test_short_documents_that_are_left_out_are_said(model, tmp_path):
    """The tokens are those of earlier versions: windows of the long documents. The line says what happened."""
    texts = [text_of(60 if seed in (5, 30) else 3, seed) for seed in range(40)]
    path = write_lines(tmp_path / "a.jsonl", "text", texts)
    long = write_lines(tmp_path / "long.jsonl", "text", [texts[5], texts[30]])
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    assert sum(len(tokenizer(text)["input_ids"]) > 20 for text in texts) == 2
    got = load_calibration(recipe(path, sequences=9), model)
    documents = [tokenizer(text)["input_ids"] for text in (texts[5], texts[30])]
    assert all(any(w == ids[i : i + 20] for ids in documents for i in range(len(ids))) for w in got.sequences)
    (warning,) = got.warnings
    assert "a.jsonl: only 2 of 40 documents are longer than 20 tokens, and only these are used; 9 windows" in warning
    assert "lower --seqlen or --sequences, or give longer documents" in warning
    (warning,) = load_calibration(recipe(long, sequences=9), model).warnings
    assert "9 windows of 2 documents overlap" in warning


@pytest.mark.slow
def test_a_large_corpus_is_tokenised_only_as_far_as_needed(model, tmp_path, monkeypatch):
    texts = [text_of(3 if seed % 3 else 60, seed) for seed in range(400)]
    path = write_lines(tmp_path / "a.jsonl", "text", texts)
    whole = load_calibration(recipe(path), model)
    counted = []
    encode = calibration_module.encoder(model)
    monkeypatch.setattr(calibration_module, "encoder", lambda _: lambda text: counted.append(text) or encode(text))
    monkeypatch.setattr(calibration_module, "SMALL_CORPUS", 100)
    assert load_calibration(recipe(path), model).sequences == whole.sequences
    assert len(counted) < 100
    short = write_lines(tmp_path / "short.jsonl", "text", [text_of(3, seed) for seed in range(101)])
    with pytest.raises(PrunusError, match="hardly a document has more than 20 tokens"):
        load_calibration(recipe(short), model)


def test_short_documents_are_joined_with_the_end_token_and_it_is_said(model, tmp_path):
    texts = [text_of(4, seed) for seed in range(100)]
    got = load_calibration(recipe(write_lines(tmp_path / "a.jsonl", "text", texts)), model)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    stream = [token for text in texts for token in [*tokenizer(text)["input_ids"], 2]]
    places = []
    for window in got.sequences:
        assert len(window) == 20
        (place,) = [i for i in range(0, len(stream) - 19, 20) if stream[i : i + 20] == window]
        places.append(place)
    assert places == sorted(set(places)) and len(places) == 8
    assert "only 0 of 100 documents are longer than 20 tokens; all were joined" in got.warnings[0]


def test_messages_are_put_into_the_chat_template(model, tmp_path):
    chat = [{"role": "user", "content": text_of(30, 0)}, {"role": "assistant", "content": text_of(30, 1)}]
    got = load_calibration(recipe(write_lines(tmp_path / "a.jsonl", "messages", [chat]), sequences=1, seqlen=50), model)
    tokenizer = load_tokenizer(model.folder)
    rendered = str(tokenizer.apply_chat_template(chat, tokenize=False))
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert any(ids[i : i + 50] == got.sequences[0] for i in range(len(ids)))


@pytest.mark.slow
def test_a_template_that_drops_thinking_is_reported(tmp_path):
    folder = make_model(tmp_path / "m")
    chat = [{"role": "user", "content": text_of(30, 0)}, {"role": "assistant", "content": "<think>\n1 2\n</think>\n3"}]
    path = write_lines(tmp_path / "a.jsonl", "messages", [chat])
    asked = recipe(path, sequences=1, seqlen=30)
    assert load_calibration(asked, Checkpoint(folder)).warnings == []
    strict = "{% for m in messages %}{{ m['role'] + m['content'].split('</think>')[-1] }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(strict)
    assert "drops the thinking of 1 of 1 lines" in load_calibration(asked, Checkpoint(folder)).warnings[0]
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(PrunusError, match="has no chat template; give text or token ids"):
        load_calibration(asked, Checkpoint(folder))


def test_messages_have_the_same_date_on_every_day(tmp_path):
    """Otherwise the same command would calibrate on other tokens tomorrow."""
    folder = make_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ (strftime_now('%Y %m %d') + ' ') * 9 }}")
    path = write_lines(tmp_path / "a.jsonl", "messages", [[{"role": "user", "content": text_of(30, 0)}]])
    loaded = load_calibration(recipe(path, sequences=1, seqlen=16), Checkpoint(folder))
    ids = load_tokenizer(folder).encode("2026 01 01 " * 9, add_special_tokens=False)
    assert any(ids[i : i + 16] == loaded.sequences[0] for i in range(len(ids)))


@pytest.mark.slow
def test_token_ids_are_used_as_they_are(model, tmp_path):
    rows = [row[:length] for row, length in zip(random_rows(5, 30), (30, 1, 7, 30, 12), strict=True)]
    path = write_lines(tmp_path / "a.jsonl", "token_ids", rows)
    for name in (str(path), f"traces:{path}"):
        assert load_calibration(recipe(name, sequences=5), model).sequences == rows
        few = load_calibration(recipe(name, sequences=3), model).sequences
        assert [row for row in rows if row in few] == few and len(few) == 3
        more = load_calibration(recipe(name, sequences=9), model)
        assert more.sequences == rows
        assert "holds 5 sequences, fewer than the 9 asked for: all are taken" in more.warnings[0]
    choices = {str(load_calibration(recipe(path, sequences=3, seed=s), model).sequences) for s in range(8)}
    assert len(choices) > 3


def test_kept_ids_read_back_to_the_same_sequences(model, tmp_path):
    (tmp_path / "a.txt").write_text(text_of(300, 0))
    first = load_calibration(recipe(tmp_path / "a.txt"), model)
    (tmp_path / "kept.jsonl").write_text(first.to_jsonl())
    second = load_calibration(recipe(tmp_path / "kept.jsonl"), model)
    assert second.sequences == first.sequences
    assert second.summary()["sha256"] == first.summary()["sha256"]


def test_auto_is_tiny_for_the_tiny_reasoner_only(model):
    tiny = Checkpoint(tiny_folder())
    assert calibration_name("auto", tiny.manifest) == "tiny"
    assert calibration_name("auto", model.manifest) == "c4"
    got = load_calibration(PruneRecipe(sequences=16), tiny)
    assert len(got.sequences) == 16 and got.warnings == []
    tokenizer = load_tokenizer(tiny.folder)
    for ids in got.sequences:
        text = str(tokenizer.decode(ids))
        assert text.startswith("<|im_start|>user") and text.count("<think>\n") == text.count("</think>") == 1
        assert "\\boxed{" in text and text.endswith("<|im_end|>")


class FakeDatasets(types.ModuleType):
    """Stands for the hub: rows by (data set, configuration or file)."""

    def __init__(self, texts, error=None):
        super().__init__("datasets")
        self.texts, self.error, self.asked = texts, error, []

    def load_dataset(self, *names, **options):
        if self.error:
            raise self.error
        self.asked.append((names, options))
        rows = [{"text": text} for text in self.texts]
        table = {"text": self.texts}

        class Rows:
            def __len__(self):
                return len(rows)

            def __getitem__(self, key):
                return rows[key] if isinstance(key, int) else table[key]

        return Rows()


def test_built_in_names_ask_the_hub_as_the_wanda_loader_does(model, tmp_path, monkeypatch):
    texts = [text_of(60, seed) for seed in range(6)]
    fake = FakeDatasets(texts)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    local = write_lines(tmp_path / "a.jsonl", "text", texts)
    (tmp_path / "a.txt").write_text(" ".join(texts))  # training text; evaluation has blank lines between
    c4, wikitext = load_calibration(recipe("c4"), model), load_calibration(recipe("wikitext2"), model)
    assert c4.sequences == load_calibration(recipe(local), model).sequences
    assert wikitext.sequences == load_calibration(recipe(tmp_path / "a.txt"), model).sequences
    assert fake.asked[0] == (
        ("allenai/c4",),
        {"data_files": {"train": "en/c4-train.00000-of-01024.json.gz"}, "split": "train"},
    )
    assert fake.asked[1] == (("Salesforce/wikitext", "wikitext-2-raw-v1"), {"split": "train"})


def test_hub_names_without_package_or_network_say_what_to_do(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        PrunusError, match=r"needs the package datasets: pip install '\.\[hub\]' in a clone of Prunus; or give a"
    ):
        load_calibration(recipe("c4"), model)
    monkeypatch.setitem(sys.modules, "datasets", FakeDatasets([], ConnectionError("no\nnetwork")))
    with pytest.raises(PrunusError, match=r"could not be had from the hub \(no network\); give a") as caught:
        load_calibration(recipe("wikitext2"), model)
    assert "\n" not in str(caught.value)


GOOD = '{"token_ids": [5, 6]}\n'


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (GOOD + "{oops\n", "line 2: not JSON"),
        (GOOD + "\n\n[1, 2]\n", "line 4: expected"),
        ('{"txt": "a"}\n', "line 1: expected"),
        ('{"text": 5}\n', "line 1: expected"),
        ('{"token_ids": []}\n', "line 1: expected"),
        ('{"token_ids": [1.5]}\n', "line 1: expected"),
        ('{"token_ids": [true]}\n', "line 1: expected"),
        ('{"messages": [{"role": "user"}]}\n', "line 1: expected"),
        (GOOD + '{"text": "a"}\n', "line 2: 'text' after 'token_ids'"),
        (GOOD + '{"token_ids": [1, 368]}\n', "line 2: token id 368 is not in the vocabulary of 368"),
        ('{"token_ids": [-1]}\n', "line 1: token id -1 is not"),
        (json.dumps({"token_ids": [5] * 257}) + "\n", "line 1: 257 tokens; the model's context is 256"),
        ("", "is empty"),
        ('{"text": "Compute 97-3-33."}\n', r"tokens, too few for 8 sequences of 20 \(160\); lower"),
    ],
)
def test_bad_files_are_refused_with_name_and_line(model, tmp_path, content, words):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(PrunusError, match=words) as caught:
        load_calibration(recipe(path), model)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text.txt", "text.jsonl", "messages.jsonl"])
def test_a_tokenizer_with_more_ids_than_the_model_has_embeddings_is_refused(tmp_path, name):
    folder, path = make_model(tmp_path / "m"), tmp_path / name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra{n}>" for n in range(VOCABULARY)])
    tokenizer.save_pretrained(folder)
    text = f"<extra{VOCABULARY - 1}>" * 300
    of_kind = {"text.jsonl": {"text": text}, "messages.jsonl": {"messages": [{"role": "user", "content": text}]}}
    path.write_text(json.dumps(of_kind[name]) if name in of_kind else text)
    with pytest.raises(PrunusError, match=f"the tokenizer of .*: token id .* vocabulary of {VOCABULARY}"):
        load_calibration(recipe(path), Checkpoint(folder))
    with pytest.raises(PrunusError, match=f"the tokenizer of .*: token id .* vocabulary of {VOCABULARY}"):
        prunus.perplexity(folder, path, seqlen=64, device="cpu")


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("no.txt", {}, "no.txt cannot be read"),
        ("no.jsonl", {}, "no.jsonl cannot be read"),
        ("c5", {}, "'c5' is neither c4, wikitext2, tiny, traces:FILE nor"),
        ("short.txt", {}, "short.txt holds 9 tokens, too few for 8 sequences of 20"),
        ("long.txt", {"seqlen": 300}, "seqlen 300 is longer than the model's context; use --seqlen 256 or less"),
        ("binary.txt", {}, "cannot be read as UTF-8"),
    ],
)
def test_other_bad_calibration_is_refused(model, tmp_path, monkeypatch, name, changes, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("1 2 3 4 5")
    (tmp_path / "long.txt").write_text(text_of(5000, 0))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PrunusError, match=words):
        load_calibration(recipe(name, **changes), model)


def run_observed(model, sequences, linears, stop_early, ran=None):
    """ran: a list that is emptied when everything is ready to be observed."""
    runner = runner_of(model)
    tensors = {name.removeprefix("model.layers.0."): t.read() for name, t in model.block_tensors(0).items()}
    chosen = [linear for linear in model.linears(0) if linear.name in linears]
    with torch.inference_mode():
        block = runner.make_block(0, tensors)
        hidden = HiddenStates(runner, sequences, None)
        if ran is not None:
            ran.clear()
        with Observer(runner, block, chosen, stop_early) as seen:
            for batch, rows in hidden.batches():
                try:
                    runner.run_block(block, rows, batch)
                except InputsSeen:
                    assert stop_early
        return seen.stats(0), hidden


def test_norms_are_those_of_all_tokens_and_shared_inputs_are_seen_once(model):
    sequences = [row[:n] for row, n in zip(random_rows(5, 30), (30, 9, 30, 1, 20), strict=True)]
    everything = ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj"]
    full, hidden = run_observed(model, sequences, everything, stop_early=False)
    early, _ = run_observed(model, sequences, everything, stop_early=True)
    norm = model.read("model.layers.0.input_layernorm.weight")
    states = hidden.states_SW
    inputs = states * (states.pow(2).mean(-1, keepdim=True) + model.config.rms_norm_eps).rsqrt() * norm
    torch.testing.assert_close(full["self_attn.q_proj"].norm_I, inputs.double().norm(dim=0).float())
    assert full["self_attn.q_proj"].tokens == 90
    assert full["self_attn.q_proj"] is not full["mlp.up_proj"]
    assert "self_attn.o_proj" not in full
    for name, stats in full.items():
        assert torch.equal(stats.norm_I, early[name].norm_I)
    assert full["self_attn.q_proj"] is full["self_attn.v_proj"]


def test_stopping_early_skips_the_last_matrix(model, monkeypatch):
    ran = []
    forward = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: ran.append(self.weight.shape) or forward(self, x))
    run_observed(model, random_rows(1, 10), ["mlp.down_proj"], stop_early=True, ran=ran)
    assert ran.count((32, 56)) == 0 and ran.count((56, 32)) == 2
    run_observed(model, random_rows(1, 10), ["self_attn.q_proj"], stop_early=True, ran=ran)
    assert ran == []
