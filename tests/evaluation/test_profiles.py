"""Profiles: the strings of the evaluation reference to the letter, and what they become under a tokenizer."""

import pytest
from chat_tokenizer import CHATML, byte_tokenizer

from prunus.checkpoint.resolve import load_tokenizer, tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.profiles import PROFILES
from prunus.evaluation.profiles.detection import resolve_profile
from prunus.evaluation.profiles.markers import decode, encode_markers, encode_prompt, find_token
from prunus.manifest import Manifest
from prunus.plain_data import content_hash
from prunus.recipes.drawing import PROFILE_NAMES

THINKING = ("<think>", "</think>", "<|im_start|>", "<|im_end|>", "<|endoftext|>")
CONSIDERING = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    "</think>\n\n"
)
# start, after a natural end, after a forced one, the same where the text ends in a newline
TEXTS = {
    "s1": (
        "<|im_start|>think",
        "<|im_start|>answer",
        "\n<|im_start|>answer\nFinal Answer:",
        "<|im_start|>answer\nFinal Answer:",
    ),
    "qwen3": ("<think>\n", "</think>\n\n", CONSIDERING, CONSIDERING),
    "tiny": ("<think>\n", "</think>\n\n", "\n</think>\n\n", "</think>\n\n"),
}
TEXTS["qwen3-legacy"] = TEXTS["s1"]
# stops of the thinking, stops of the answer, banned in strict answers, wait, wait after a newline
TOKENS = {
    "s1": ({"<|im_start|>", "<|im_end|>"}, {"<|im_end|>"}, {"<|im_start|>"}, "Wait", "Wait"),
    "qwen3": (
        {"</think>", "<|im_end|>"},
        {"<|im_end|>", "<|endoftext|>"},
        {"<think>", "<|im_start|>"},
        "\n\nWait",
        "Wait",
    ),
}
TOKENS["tiny"], TOKENS["qwen3-legacy"] = TOKENS["qwen3"], TOKENS["s1"]


def test_every_named_profile_exists():
    assert {"auto", *PROFILES} == set(PROFILE_NAMES) and all(name == found.name for name, found in PROFILES.items())


@pytest.mark.parametrize("name", TEXTS)
def test_strings_are_those_of_the_reference(name):
    tokenizer = byte_tokenizer(THINKING)
    markers = encode_markers(PROFILES[name], tokenizer, "strict")
    newline, letter = tokenizer.encode("\n"), tokenizer.encode("a")
    closings = (
        markers.closing(letter, True),
        markers.closing(letter, False),
        markers.closing(letter + newline, False),
    )
    assert tuple(decode(tokenizer, list(ids)) for ids in (markers.start, *closings)) == TEXTS[name]
    think_stops, answer_stops, banned, wait, wait_after_newline = TOKENS[name]
    for ids, texts in (
        (markers.think_stops, think_stops),
        (markers.answer_stops, answer_stops),
        (markers.answer_banned, banned),
    ):
        assert ids == {find_token(tokenizer, text) for text in texts}
    assert decode(tokenizer, list(markers.refusal(letter))) == wait
    assert decode(tokenizer, list(markers.refusal(newline))) == wait_after_newline
    # Nothing thought yet does not end in a newline, although a start of the prompt may.
    assert markers.closing([], False) == markers.closing(letter, False)
    assert markers.refusal([]) == markers.refusal(letter)


@pytest.mark.parametrize(
    ("name", "caps", "sampling"),
    [
        ("s1", (1024, 512), (0.6, 0.95, 0)),
        ("qwen3", (1024, 512), (0.6, 0.95, 20)),
        ("tiny", (64, 64), (0.0, 1.0, 0)),
        ("qwen3-legacy", (32768, 32768), (1.0, 1.0, 0)),
    ],
)
def test_caps_and_sampling_by_mode(name, caps, sampling):
    profile = PROFILES[name]
    assert (profile.answer_cap("math", "strict"), profile.answer_cap("choice", "strict")) == caps
    assert profile.sampling == sampling
    assert {profile.answer_cap(kind, "legacy") for kind in ("integer", "math", "choice", "exact")} == {32768}
    assert encode_markers(profile, byte_tokenizer(THINKING), "legacy").answer_banned == frozenset()


def test_the_stored_strings_tell_profiles_apart():
    strings = [profile.strings() for profile in PROFILES.values()]
    assert len({str(text) for text in strings}) == len(PROFILES)
    assert PROFILES["s1"].strings()["think_stops"] == ["<|im_start|>", "<|im_end|>"]
    assert all("temperature" not in texts for texts in strings)


def test_the_ids_of_stored_plans_stay():
    """Hashes of the strings that version 0.1.0 stored, computed by it."""
    found = {name: content_hash(PROFILES[name].strings()) for name in TEXTS}
    assert found == {
        "s1": "4ad8e0e59b3a",
        "qwen3": "bd6e33972233",
        "tiny": "86189dbce4fd",
        "qwen3-legacy": "0ef2a3bb5583",
    }


@pytest.mark.parametrize(
    ("markers", "manifest", "expected", "said"),
    [
        (THINKING, Manifest(), "qwen3-legacy", "its own markers: --profile qwen3"),
        (
            ("<|im_start|>", "<|im_end|>"),
            Manifest(),
            "s1",
            "profile s1: mode legacy takes s1's markers for every model",
        ),
        (THINKING, Manifest(profile="tiny"), "tiny", ""),
    ],
)
def test_auto_takes_the_papers_markers_in_mode_legacy_and_says_so(markers, manifest, expected, said, capsys):
    tokenizer = byte_tokenizer(markers)
    profile = resolve_profile("auto", tokenizer, manifest, "legacy", given={"top_k": 3, "top_p": None})
    assert (profile.name, profile.sampling) == (expected, (1.0, 1.0, 3))
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == bool(said)
    assert resolve_profile("qwen3", byte_tokenizer(THINKING), manifest, "legacy").name == "qwen3", (
        "what is named is taken"
    )


def test_the_built_in_model_has_its_own_profile():
    tokenizer = load_tokenizer(tiny_folder())
    markers = encode_markers(PROFILES["tiny"], tokenizer, "strict")
    assert decode(tokenizer, list(markers.start)) == "<think>\n"
    prompt = encode_prompt(PROFILES["tiny"], tokenizer, "Compute 1+1.")
    opened = "<|im_start|>user\nCompute 1+1.<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert decode(tokenizer, prompt) == opened
    assert resolve_profile("auto", tokenizer, Manifest(profile="tiny"), folder=tiny_folder()) == PROFILES["tiny"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: resolve_profile("auto", byte_tokenizer(["<s>"]), Manifest(), "legacy"),
            r"neither <think> nor <\|im_start\|>.*--profile",
        ),
        (
            lambda: resolve_profile("auto", byte_tokenizer(THINKING), Manifest(profile="warp")),
            "profile 'warp' is not known",
        ),
        (
            lambda: resolve_profile("auto", byte_tokenizer(THINKING, template=None), Manifest(profile="tiny")),
            "no chat template",
        ),
        (
            lambda: encode_markers(PROFILES["qwen3"], byte_tokenizer(THINKING[:-1]), "strict"),
            r"'qwen3' needs <\|endoftext\|> as a single token",
        ),
    ],
)
def test_what_does_not_fit_a_tokenizer_is_refused(call, message):
    with pytest.raises(PrunusError, match=message):
        call()


def test_tokens_are_found_by_their_text():
    tokenizer = byte_tokenizer(THINKING)
    assert find_token(tokenizer, "</think>") == 257 and find_token(tokenizer, "<nothing>") is None


@pytest.mark.slow
def test_a_template_that_opens_the_thinking_does_not_open_it_twice():
    """What the template opened is kept to the byte."""
    for start in ("", "<think>\n", "<think>", "<think>\n\n"):
        tokenizer = byte_tokenizer(THINKING, CHATML.replace("assistant\n'", f"assistant\n{start}'"))
        profile = resolve_profile("qwen3", tokenizer, Manifest())
        prompt = decode(tokenizer, encode_prompt(profile, tokenizer, "2+2?"))
        opened = start or "<think>\n"
        assert prompt == f"<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n{opened}"
        appended = encode_markers(profile, tokenizer, "strict").start
        assert decode(tokenizer, list(appended)) == ("<think>\n" if start in ("", "<think>\n") else "")
        assert (profile == PROFILES["qwen3"]) == bool(appended), "plans of models that were right keep their ids"


def test_thinking_is_switched_on_in_the_template_where_the_profile_says_so():
    template = CHATML + "{{ 'on' if enable_thinking else 'off' }}"
    tokenizer = byte_tokenizer(THINKING, template)
    ends = {name: decode(tokenizer, encode_prompt(PROFILES[name], tokenizer, "?")) for name in TEXTS}
    assert {name: text.split("assistant\n")[1].split("<")[0] for name, text in ends.items()} == {
        "s1": "off",
        "qwen3": "on",
        "qwen3-legacy": "on",
        "tiny": "off",
    }
