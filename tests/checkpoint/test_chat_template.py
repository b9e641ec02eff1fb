"""Chat templates are programs of strangers: they are bounded in time, memory and length, and usual ones unchanged."""

import json
import os
import shutil
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest

import prunus
from prunus.checkpoint import chat_template
from prunus.checkpoint.chat_template import TemplateError, rendered
from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROFILES, markers

USER = [{"role": "user", "content": "2+2?"}]
SLOW, LARGE, LONG = "longer than 1 s", "memory", "more than 16,777,216 characters"
HOSTILE = {
    "nested loops": ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", SLOW),
    "a loop over the text": (
        "{% for a in messages[0].content * 25000 %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        SLOW,
    ),
    "macros that call themselves twice": (
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
        SLOW,
    ),
    "endless recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "a power of powers": ("{{ 7 ** (9 ** 9) }}", SLOW),
    "a long text": ("{{ 'a' * 10 ** 10 }}", LARGE),
    "a text that doubles": (
        "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}",
        f"{LARGE}|{SLOW}",
    ),
    "a list of itself twice": (
        "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
        f"{LARGE}|{SLOW}",
    ),
    "a long prompt": ("{% for a in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", LONG),
}


def model_with(tmp_path: Path, template: str) -> Path:
    """The built-in model with another chat template."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder(), folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.thorough("endless recursion", "nested loops")
@pytest.mark.slow
@pytest.mark.parametrize("what", HOSTILE)
def test_a_template_without_end_is_refused_in_one_line(what, monkeypatch):
    template, words = HOSTILE[what]
    monkeypatch.setattr(chat_template, "SECONDS", 1.0)
    began, tokenizer = time.monotonic(), load_tokenizer(tiny_folder())
    with pytest.raises(TemplateError, match=words) as found:
        list(rendered(tokenizer, [USER], chat_template=template))
    assert "\n" not in str(found.value)
    assert time.monotonic() - began < 20  # a busy machine needs some seconds to fork and to end


@pytest.mark.thorough
@pytest.mark.slow
def test_commands_refuse_such_a_model(tmp_path, monkeypatch, capsys):
    """Where the template decides by the text, it is found at that text: every conversation is bounded."""
    monkeypatch.setattr(chat_template, "SECONDS", 1.0)
    usual = load_tokenizer(tiny_folder()).chat_template
    assert isinstance(usual, str)
    bomb = "{% if messages[0].content|length > 20 %}" + HOSTILE["nested loops"][0] + "{% endif %}"
    model = model_with(tmp_path, usual + bomb)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": [{"role": "user", "content": "x" * n}]}) + "\n" for n in (5, 50)))
    for arguments, words in (
        (["eval", model, "--task", "tiny", "--budgets", "16", "--store", tmp_path / "r.db"], "chat template cannot be"),
        (["traces", model, tmp_path / "t.jsonl", "--task", "tiny"], "chat template cannot be used"),
        (["prune", model, tmp_path / "out", "--calibration", rows], "line 2: the chat template rejects it"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, arguments)))
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert ended.value.code == 2 and words in said and said.endswith("longer than 1 s for one conversation")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "rows.jsonl"]


def test_usual_texts_are_those_of_transformers():
    tokenizer = load_tokenizer(tiny_folder())
    chats = [[{"role": "user", "content": f"{n} + {n}? é 😀"}] for n in range(50)]
    for opens in (False, True):
        wanted = [tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opens) for chat in chats]
        assert list(rendered(tokenizer, chats, add_generation_prompt=opens)) == wanted


def test_the_error_is_that_of_its_conversation_and_no_process_is_left(monkeypatch):
    tokenizer, children, fork = load_tokenizer(tiny_folder()), [], os.fork
    monkeypatch.setattr(os, "fork", lambda: children.append(fork()) or children[-1])
    template = "{% if messages[0].content == 'no' %}{{ raise_exception('not\nthis') }}{% endif %}"
    template += "{{ messages[0].content }}"
    chats = [[{"role": "user", "content": text}] for text in ("a", "b", "no", "c")]
    found = []
    with pytest.raises(TemplateError, match="not this"):
        found.extend(rendered(tokenizer, chats, chat_template=template))
    assert found == ["a", "b"]
    half = rendered(tokenizer, chats, chat_template="{{ messages[0].content }}")
    assert next(half) == "a"
    half.close()
    assert len(children) == 2
    for child in children:
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)


@pytest.mark.slow
def test_profiles_say_it_too(tmp_path, monkeypatch):
    monkeypatch.setattr(chat_template, "SECONDS", 1.0)
    model = model_with(tmp_path, HOSTILE["nested loops"][0])
    with pytest.raises(PrunusError, match="chat template cannot be used: it takes longer than 1 s"):
        prunus.show_profile(model=model)


@pytest.mark.slow
def test_the_same_conversations_are_rendered_once_and_others_anew(monkeypatch):
    """A tokenizer loaded again knows them; another template, date or special token is another text."""
    usual, calls = markers.rendered, []
    monkeypatch.setattr(markers, "rendered", lambda *given, **options: calls.append(1) or usual(*given, **options))
    monkeypatch.setattr(markers, "_RENDERED", {})
    monkeypatch.setattr(markers, "CALLS_KEPT", 5)
    loaded = cycle([load_tokenizer(tiny_folder()), load_tokenizer(tiny_folder())])
    template = "{{ bos_token }} {{ strftime_now('%Y') }} {{ messages[0].content }} {{ option }}"

    def render(bos="<a>", date="2026-01-01", option="x", text="2+2?"):
        tokenizer = next(loaded)
        tokenizer.bos_token, tokenizer.chat_template = bos, template
        return markers.render(tokenizer, replace(PROFILES["plain"], date=date), [text], {"option": option})[0]

    assert [render(), render()] == ["<a> 2026 2+2? x"] * 2 and len(calls) == 1
    assert render(bos="<b>") == "<b> 2026 2+2? x" and render(date="2027-01-01") == "<a> 2027 2+2? x"
    assert render(option="y") == "<a> 2026 2+2? y" and render(text="3") == "<a> 2026 3 x" and len(calls) == 5
    render()
    render(text="4")  # in place of the one that was needed least lately
    assert render() == "<a> 2026 2+2? x" and len(calls) == 6 and len(markers._RENDERED) == 5
    assert render(bos="<b>") == "<b> 2026 2+2? x" and len(calls) == 7
