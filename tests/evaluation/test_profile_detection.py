"""`auto` on chat templates that end as those of the families do: what is chosen, why, and the prompt byte by byte.

The templates are stand-ins of our own with the same tail and the same options; the bytes are those of the families.
"""

import json

import pytest
from chat_templates import CASES, CHAT, EMPTY, HARMONY, MISTRAL, PROMPT, QWEN, STOP, USER, ending
from chat_tokenizer import CHATML, byte_tokenizer

from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.catalogue import show_profile
from prunus.evaluation.profiles.detection import resolve_profile
from prunus.evaluation.profiles.markers import decode, encode_markers, encode_prompt, end_ids, end_of_turn
from prunus.manifest import Manifest


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_profile_and_the_prompt_of_a_family(case, capsys):
    tokens, template, name, prompt, said = CASES[case]
    tokenizer = byte_tokenizer(tokens, template)
    profile = resolve_profile("auto", tokenizer, Manifest())
    assert profile.name == name
    assert decode(tokenizer, encode_prompt(profile, tokenizer, "2+2?")) == prompt
    told = capsys.readouterr().err
    assert said in told and told.startswith(f"profile {name}: ")
    markers = encode_markers(profile, tokenizer, "strict")
    assert markers.think_stops or markers.think_texts or markers.answer_in_chain


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHATML + "{# keep_past_thinking </think> #}", "this model may not think; if it does not, use --profile plain"),
        (
            CHATML + "{{ '<|START_THINKING|>' }}{# message.reasoning_content #}",
            "the template has reasoning_content, so",
        ),
        (CHATML + "{# reasoning_effort #}", "so the model may think, with markers that no built-in profile has"),
    ],
)
def test_templates_whose_thinking_is_in_doubt(template, said, capsys):
    resolve_profile("auto", byte_tokenizer(QWEN[2:], template), Manifest())
    assert said in capsys.readouterr().err


def test_a_date_leaves_the_rest_of_a_template_as_it_is():
    tokenizer = byte_tokenizer((), "\n" + MISTRAL + "{{ strftime_now('%d %b') }}")
    profile = resolve_profile("plain", tokenizer, Manifest())
    assert decode(tokenizer, encode_prompt(profile, tokenizer, "2+2?")) == "\n[user]2+2?[/INST]01 Jan"


def test_templates_by_name():
    tokenizer = byte_tokenizer(CHAT, {"default": CHATML, "tool_use": "{{ tools }}"})
    assert decode(tokenizer, encode_prompt(PROFILES["plain"], tokenizer, "2+2?")) == PROMPT
    with pytest.raises(PrunusError, match=r"chat templates by name \(rag, tool_use\), but none is the 'default'"):
        resolve_profile("auto", byte_tokenizer(CHAT, {"rag": CHATML, "tool_use": CHATML}), Manifest())


def test_s1_is_known_by_its_name_only(tmp_path, capsys):
    tokenizer = byte_tokenizer(CHAT)
    for folder in ("s1.1-7B", "models--simplescaling--s1-32B/snapshots/0"):
        assert resolve_profile("auto", tokenizer, Manifest(), folder=tmp_path / folder).name == "s1"
    pruned = Manifest.of({"history": [{"source": {"name": "simplescaling/s1.1-7B"}}]})
    assert resolve_profile("auto", tokenizer, pruned, folder=tmp_path / "wanda-50").name == "s1"
    assert "by its name, simplescaling/s1.1-7B" in capsys.readouterr().err
    assert resolve_profile("auto", tokenizer, Manifest(), folder=tmp_path / "qwen-s12-7B").name == "plain"
    assert resolve_profile("auto", tokenizer, Manifest(), folder=tmp_path / "MyReasoner").name == "plain"
    assert "'MyReasoner' suggests a thinking model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "template", "name", "message"),
    [
        (QWEN, ending(f"}}}}{EMPTY}{{{{ ''"), "auto", "closed thinking, and no option of it opens it"),
        (QWEN, ending(f"}}}}{EMPTY}{{{{ ''", "reasoning_effort"), "qwen3", "tried reasoning_effort"),
        (CHAT, CHATML.replace("+ m['content']", ""), "qwen3", "user's text 0 times"),
        (CHAT, CHATML.replace("m['content']", "m['content'] + m['content']"), "auto", "user's text 2 times"),
        (CHAT, "{{ raise_exception('tools first') }}", "auto", "cannot be used: tools first"),
        (CHAT, CHATML + "{{ strftime_now(bos_token) }}", "auto", "today's date in a way that cannot be replaced"),
        (("[THINK]", "[/THINK]", "<seed:think>"), CHATML, "auto", r"several profiles \(brackets, seed\): choose"),
        (CHAT, None, "plain", "no chat template"),
    ],
)  # fmt: skip
def test_what_cannot_be_opened_is_refused(tokens, template, name, message):
    with pytest.raises(PrunusError, match=message):
        resolve_profile(name, byte_tokenizer(tokens, template), Manifest())


def test_a_system_prompt_with_markers_opens_nothing(tmp_path):
    """Magistral's holds an example block; only the end of the prompt counts."""
    (tmp_path / "SYSTEM_PROMPT.txt").write_text("Think: [THINK]a[/THINK] b.")
    tokenizer = byte_tokenizer(("[THINK]", "[/THINK]"), MISTRAL)
    profile = resolve_profile("auto", tokenizer, Manifest(), folder=tmp_path)
    prompt = decode(tokenizer, encode_prompt(profile, tokenizer, "2+2?"))
    assert prompt == "[system]Think: [THINK]a[/THINK] b.[/INST][user]2+2?[/INST][THINK]"
    assert str(profile.strings()["system"]).startswith("Think:"), "it is a part of the stored plan"


def test_what_ends_a_turn_is_looked_for_in_every_file(tmp_path):
    tokenizer = byte_tokenizer((*HARMONY, "<|im_end|>", "<eos>", "<pad>"), CHATML)
    known = {
        text: tokenizer.convert_tokens_to_ids(text)
        for text in ("<eos>", "<|im_end|>", "<|return|>", "<|end|>", "<pad>")
    }

    def ends(config: object, generation: object) -> set[str]:
        (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": config}))
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        found = end_ids(tokenizer, tmp_path, end_of_turn(tokenizer, PROFILES["plain"]))
        return {text for text, token in known.items() if token in found}

    assert ends(None, None) == {"<|im_end|>"}, "by the template"
    assert ends(known["<eos>"], None) == {"<eos>", "<|im_end|>"}
    assert ends(None, [known["<eos>"], known["<pad>"]]) == {"<eos>", "<pad>", "<|im_end|>"}
    assert ends(known["<|end|>"], None) == {"<|end|>", "<|im_end|>"}
    assert ends(known["<|end|>"], known["<|return|>"]) == {"<|return|>", "<|im_end|>"}, "<|end|> only ends a message"
    tokenizer.chat_template = USER + "{{ m['content'] }}" + STOP
    with pytest.raises(PrunusError, match="a token that ends its turn: set eos_token_id"):
        ends(None, None)


def test_sampling_is_that_of_the_models_files_where_it_is_sampled(tmp_path):
    tokenizer, path = byte_tokenizer(CHAT), tmp_path / "generation_config.json"
    path.write_text(json.dumps({"do_sample": True, "temperature": 1, "top_p": 0.8, "top_k": 7}))
    profile = resolve_profile("plain", tokenizer, Manifest(), folder=tmp_path)
    assert profile.sampling == (1.0, 0.8, 7)
    path.write_text(json.dumps({"do_sample": False, "temperature": 1}))
    assert resolve_profile("plain", tokenizer, Manifest(), folder=tmp_path).sampling == (0.6, 0.95, 0)
    assert resolve_profile("s1", tokenizer, Manifest(), folder=tmp_path).sampling == (0.6, 0.95, 0)


def test_a_profile_of_the_models_own_folder(tmp_path, capsys):
    text = 'format = 1\nname = "lab"\nextends = "think-tags"\n[think]\nstart = "<plan>"\nstops = ["</plan>"]\n'
    (tmp_path / "prunus_profile.toml").write_text(text)
    profile = resolve_profile("auto", byte_tokenizer(CHAT), Manifest(), folder=tmp_path)
    assert (profile.name, profile.think_stops) == ("lab", ("</plan>",))
    assert "by prunus_profile.toml" in capsys.readouterr().err
    assert resolve_profile("auto", byte_tokenizer(CHAT), Manifest(profile="s1"), folder=tmp_path).name == "s1"


TOML = 'format = 1\nextends = "think-tags"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[think]\nstarts = 'x'\n", r"line 4: 'starts' is not known in \[think\]; did you mean 'start'"),
        ("[answer]\n\nzebra = 1\n", r"line 5: 'zebra' is not known in \[answer\]; known keys are stops"),
        ("[thinks]\nstart = ''\n", r"line 3: 'thinks' is none of the tables"),
        ("[think]\nstops = ['  ']\n", "a marker is empty or has only blanks"),
        ("[think]\nstart = '<a></think>'\n", "'</think>' is a part of the start"),
        ("[think]\nstops = []\n", "needs `answer_in_chain = true`"),
        ("[close]\nanswer_in_chain = true\n", "needs `stops = "),
        ("[close]\nanswer_lead = 'So'\n", "answer_lead 'So' is not the end of forced"),
        ("[think]\nmatch = 'fuzzy'\n", "match must be auto or token or text"),
        ("[think]\nwait = 3\n", "'wait' must be a text"),
        ("[template]\nmessages = 3\n", "'messages' of .template. is set by prunus"),
        ("[template]\nsystem = 5\n", "system: it must be a text, not 5"),
        ("[template]\nsystem = 'a'\nsystem_file = 'b'\n", "takes one of system"),
        ("[template]\nsystem_file = '../b'\n", "must be a file beside the profile"),
        ("[template]\nsystem_file = 'none.txt'\n", "none.txt cannot be read"),
        ("[sampling]\ntop_p = 0.0\n", r"top_p in \(0, 1\]"),
        ("[answer]\ntokens = 0\n", "must be 1 or more"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(TOML + text)
    with pytest.raises(PrunusError, match=rf"profile {path}: .*{message}"):
        resolve_profile(str(path), byte_tokenizer(CHAT), Manifest())


@pytest.mark.slow
def test_a_file_with_options_a_system_prompt_and_a_date(tmp_path):
    (tmp_path / "system.txt").write_text("Be brief.")
    path = tmp_path / "mine.toml"
    path.write_text(TOML + "[template]\nsystem_file = 'system.txt'\nreasoning_effort = 'low'\ndate = '2025-03-04'\n")
    template = CHATML.replace(
        "{% for", "{{ reasoning_effort }} {{ strftime_now('%d %B %Y') }} {{ strftime_now(\"%Y\") }}\n{% for", 1
    )
    tokenizer = byte_tokenizer(CHAT, template)
    profile = resolve_profile(str(path), tokenizer, Manifest())
    prompt = decode(tokenizer, encode_prompt(profile, tokenizer, "2+2?"))
    assert prompt.startswith("low 04 March 2025 2025\n<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?")
    assert profile.strings()["template"] == {"reasoning_effort": "low"} and profile.name == "mine"
    assert {**PROFILES["think-tags"].strings()}.keys() & {"template", "system", "date", "strip"} == set()


@pytest.mark.slow
def test_auto_without_a_model_asks_for_one():
    with pytest.raises(PrunusError, match="name the model with --model"):
        show_profile("auto")
    assert show_profile("plain").settings["answer_in_chain"] is True
    assert show_profile(model="tiny").to_json()["prompt"].endswith("2+2?<|im_end|>\n<|im_start|>assistant\n<think>\n")
