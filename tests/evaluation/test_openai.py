"""The openai backend against a server on loopback: the same rows as hf, and one line for all that can go wrong."""

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from babbling import babble
from completions_server import Server, serving
from scripted_backend import ScriptedBackend
from tiny_chains import MARKERS, TOKENIZER, chains, complete, tiny

import prunus
from prunus.checkpoint.resolve import tiny_folder
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.backends import openai, opened, served, transport
from prunus.evaluation.budget import Rules, force_budgets
from prunus.evaluation.profiles.markers import decode
from prunus.evaluation.requests import Sampling
from prunus.recipes import EvalPlan
from prunus.settings.engines import EngineOptions, parse_args
from prunus.store.store import Store

GREEDY, WARM = Sampling(0.0), Sampling(1.0, 0.95, 20)
PLAN = EvalPlan(tasks=("tiny",), limit=4, budgets=(0, 6), engine="openai", batch_size=2)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(transport, "BACKOFF_SECONDS", 0.001)


def babbling(**settings) -> Server:
    """A server without a model."""
    return Server(ScriptedBackend(babble), TOKENIZER, **settings)


@contextmanager
def connected(server: Server, **engine) -> Iterator[openai.OpenAIBackend]:
    with (
        serving(server),
        opened("openai", tiny_folder(), "auto", len(TOKENIZER), EngineOptions(url=server.url, **engine)) as backend,
    ):
        assert isinstance(backend, openai.OpenAIBackend)
        yield backend


def refusal(server: Server, plan: EvalPlan = PLAN, **engine) -> str:
    """What evaluating with this server ends in: one line."""
    with serving(server), TemporaryDirectory() as folder, pytest.raises(PrunusError) as error:
        prunus.evaluate("tiny", plan, Path(folder) / "results.db", options=EngineOptions(url=server.url, **engine))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.slow
@pytest.mark.thorough("token_ids")
@pytest.mark.parametrize("form", ["token_ids", "token_id texts", "token texts", "text"])
def test_rows_are_those_of_hf_whatever_form_ids_come_back_in(form):
    some, rules, budgets = chains()[:2], Rules(MARKERS, WARM, seed=5), (0, 5, 12)
    expected = force_budgets(tiny(), some, budgets, rules)
    server = Server(tiny(), TOKENIZER, form=form, owner="vllm" if form.startswith("token_id") else "sglang")
    if form.startswith("token_id"):
        with connected(server) as backend:
            found = force_budgets(backend, some, budgets, rules)
            assert backend.description.data["token_ids"] == "ids"
        assert found == expected
        for ours, theirs in zip(chain.from_iterable(found), chain.from_iterable(expected), strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-5) and ours.self_certainty is None
    else:  # other servers hold 32 bits of a seed, so only greedy rows are the same
        rules = replace(rules, sampling=GREEDY)
        with connected(server) as backend:
            found = force_budgets(backend, some, budgets, rules)
            assert backend.description.data["token_ids"] == ("texts of tokens" if form == "token texts" else "text")
        assert found == force_budgets(tiny(), some, budgets, rules)
        assert all(draw.logprob is None for draws in found for draw in draws), "theirs need not be the model's own"


def test_what_the_server_is_asked():
    """Ids, not texts; every sampling value; closings to the byte."""
    server = babbling()
    with connected(server) as backend:
        server.seen.clear()
        [[draw]] = force_budgets(backend, chains()[:1], (6,), Rules(MARKERS, WARM, seed=5))
    thinking, answering = server.seen
    assert thinking["prompt"] == chains()[0].prompt and thinking["max_tokens"] == 7
    assert answering["prompt"] == [*chains()[0].prompt, *draw.thinking, *draw.closing]
    closing = decode(TOKENIZER, answering["prompt"][len(thinking["prompt"]) + len(draw.thinking) :])
    assert closing == ("\n</think>\n\n" if draw.ended == "forced" else "</think>\n\n")
    asked = {"temperature": 1.0, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "presence_penalty": 0.0, "n": 1}
    asked |= {"frequency_penalty": 0.0, "repetition_penalty": 1.0, "ignore_eos": True, "model": "tiny", "stream": False}
    for body in server.seen:
        assert asked.items() <= body.items()
    assert set(thinking["stop_token_ids"]) == MARKERS.think_stops and thinking["seed"] != answering["seed"]
    assert set(map(int, answering["logit_bias"])) == MARKERS.answer_banned | set(range(len(TOKENIZER), 368))


def test_fields_of_every_request_are_those_of_the_options():
    asked = {"repetition_penalty": 1.05, "min_p": 0.05}
    with connected(server := babbling(), request=asked) as backend:
        first = server.seen[:12]
        assert all("min_p" in body and body["min_p"] == 0.0 for body in first), "the probe of seeds is without them"
        server.seen.clear()
        force_budgets(backend, chains()[:1], (6,), Rules(MARKERS, WARM))
    assert len(server.seen) == 2
    for body in server.seen:
        assert {**asked, "frequency_penalty": 0.0, "temperature": 1.0}.items() <= body.items()


@pytest.mark.parametrize(
    ("asked", "samplers"),
    [
        ({}, ["temperature", "top_k", "top_p"]),
        ({"min_p": 0.05}, ["temperature", "min_p", "top_k", "top_p"]),
        ({"repeat_penalty": 1.1, "repeat_last_n": -1}, ["penalties", "temperature", "top_k", "top_p"]),
        (
            {"min_p": 0.1, "presence_penalty": 0.5, "dry_multiplier": 0.8},
            ["penalties", "dry", "temperature", "min_p", "top_k", "top_p"],
        ),
    ],
)
def test_llama_cpp_gets_the_samplers_of_the_fields(asked, samplers):
    """It leaves out silently what is not among its samplers; their other values are set, as servers have defaults."""
    server = babbling(owner="llamacpp")
    with connected(server, request=asked) as backend:
        server.seen.clear()
        complete(backend, [chains()[0].prompt], [3], frozenset(), frozenset(), [1], WARM)
    assert server.seen
    for body in server.seen:
        assert asked.items() <= body.items() and body["samplers"] == samplers
        assert body.get("repeat_penalty") == (asked.get("repeat_penalty", 1.0) if asked else None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "field", "value"),
    [
        *(("vllm", name, 0.5) for name in ("min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")),
        ("llamacpp", "repeat_penalty", 1.1),
    ],
)
def test_a_field_that_a_server_ignores_is_refused_by_its_name(owner, field, value):
    with connected(babbling(owner=owner), request={field: value}):
        pass  # another server heeds it
    error = refusal(babbling(owner=owner, flaws=frozenset({field})), request={field: value})
    assert f"ignores the request field '{field}'" in error


def test_fields_that_another_server_takes_are_refused():
    error = refusal(babbling(), request={"repeat_penalty": 1.1})
    assert "(vllm) does not take the request field 'repeat_penalty': it takes frequency_penalty, min_p" in error
    error = refusal(babbling(owner="llamacpp"), request={"repetition_penalty": 1.1})
    assert "(llamacpp) does not take the request field 'repetition_penalty'" in error and "repeat_penalty" in error


@pytest.mark.slow
def test_no_more_requests_at_once_than_allowed_and_answers_first():
    server = babbling(seconds=0.02)
    with connected(server, concurrency=3) as backend:
        server.seen.clear()
        force_budgets(backend, chains(), (4,), Rules(MARKERS, WARM))
    assert 1 < server.most_together <= 3
    is_answer = [len(body["prompt"]) not in {len(one.prompt) for one in chains()} for body in server.seen]
    assert True in is_answer[:6], "an answer follows its chain, and does not wait for all chains"


@pytest.mark.thorough
def test_stops_as_texts_where_ids_are_ignored():
    """As by SGLang, where ignore_eos switches them off."""
    server = Server(tiny(), TOKENIZER, owner="sglang", flaws=frozenset({"stop_token_ids"}))
    with connected(server) as backend:
        assert backend.description.data["stops"] == "texts"
        found = force_budgets(backend, chains()[:2], (0, 80), Rules(MARKERS, GREEDY))
    assert found == force_budgets(tiny(), chains()[:2], (0, 80), Rules(MARKERS, GREEDY))


@pytest.mark.thorough
@pytest.mark.slow
def test_llama_cpp_gives_the_rows_of_hf():
    """Special tokens have no text there and would not stop, and it ends at every end that its file names."""
    some, budgets, rules = chains()[:2], (0, 5, 24, 80), Rules(MARKERS, GREEDY)
    server = Server(tiny(), TOKENIZER, owner="llamacpp", ends=MARKERS.answer_stops)
    with connected(server) as backend:
        expected = {"engine": "openai", "server": "llamacpp b1", "token_ids": "ids", "stops": "ids"}
        assert expected.items() <= backend.description.data.items()
        server.seen.clear()
        found = force_budgets(backend, some, budgets, rules)
    assert found == force_budgets(tiny(), some, budgets, rules)
    assert {draw.ended for draws in found for draw in draws} == {"natural", "forced"}
    answers = sum(len({draw.ended == "natural" or draw.budget for draw in draws}) for draws in found)
    assert len(server.seen) == len(some) + answers, "nothing is asked twice"
    asked = {"samplers": ["temperature", "top_k", "top_p"], "ignore_eos": False, "cache_prompt": False, "mirostat": 0}
    assert all(asked.items() <= body.items() for body in server.seen)


def test_ends_that_llama_cpp_was_not_asked_for_are_gone_over():
    """Other ends of its file, a stop that was spelled out, and the least number of tokens, which it does not know."""
    [stop] = TOKENIZER.encode("</think>")
    spelled = [token for text in ("</", "think", ">") for token in TOKENIZER.encode(text)]
    assert stop not in spelled and decode(TOKENIZER, spelled) == "</think>"
    written = [40, 41, *spelled, 42, stop, 43]

    def write(prompt: Sequence[int], seed: int) -> Iterator[int]:
        done = len(prompt) - 2
        yield from chain(written[done:], repeat(50)) if [*prompt[:2]] == [30, 31] else babble(prompt, seed)

    server = Server(ScriptedBackend(write), TOKENIZER, owner="llamacpp", ends=frozenset({41}))
    with connected(server) as backend:
        server.seen.clear()
        [whole] = complete(backend, [[30, 31]], [20], frozenset({stop}), frozenset(), [8], WARM)
        assert (whole.ids, whole.stopped) == (written[:-2], stop)
        assert [body["prompt"][2:] for body in server.seen] == [[], written[:2], [*written[:2], *spelled]]
        assert len({body["seed"] for body in server.seen}) == 3
        server.seen.clear()
        [cut] = complete(backend, [[30, 31]], [4], frozenset({stop, 40}), frozenset(), [8], WARM, min_new_tokens=1)
        first = server.seen[0]
        assert first["stop"] == [] and first["n_predict"] == 1 and {"40", str(stop)} <= set(first["logit_bias"])
        assert len(cut.ids) == 4 and cut.stopped is None and cut.ids[0] not in (stop, 40)


@pytest.mark.slow
def test_llama_cpp_without_room_says_so():
    """It ends quietly where its context is full."""
    server = Server(ScriptedBackend(babble), TOKENIZER, owner="llamacpp", context=40)
    with connected(server) as backend, pytest.raises(PrunusError, match=r"after 30 of 50 ids: its context is full"):
        complete(backend, [[30] * 10], [50], frozenset(), frozenset(), [1], WARM)
    assert "but the engine's context is 60: lower the budget" in refusal(babbling(owner="llamacpp", context=60))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flaws", "message"),
    [
        ({"stop_token_ids", "stop"}, "ignores stop_token_ids and stop"),
        ({"logit_bias"}, "ignores logit_bias"),
        ({"seed"}, "ignores seed"),
        ({"max_tokens"}, "ignores max_tokens"),
        ({"special tokens"}, "does not stop at <|endoftext|>"),
    ],
    ids=lambda value: "" if isinstance(value, str) else " and ".join(sorted(value)),
)
def test_servers_that_ignore_what_matters_are_refused(flaws, message):
    assert message in refusal(Server(tiny(), TOKENIZER, flaws=frozenset(flaws)))


def test_a_server_that_forgets_its_stops_later_ends_the_run():
    server = Server(ScriptedBackend(babble), TOKENIZER)
    with connected(server) as backend:
        server.flaws = frozenset({"stop_token_ids"})
        with pytest.raises(PrunusError, match="continued after a stop, although it stopped there in the probe"):
            complete(backend, [[30, 31]], [60], frozenset(range(3, 40)), frozenset(), [1], WARM)


def test_sglang_heeds_seeds_only_if_told_to():
    message = refusal(babbling(owner="sglang", flaws=frozenset({"seed"})))
    assert "ignores seed, unless it is started with --enable-deterministic-inference" in message


@pytest.mark.slow
def test_another_model_a_wrong_key_and_a_context_too_small():
    message = refusal(babbling(name="org/other"))
    assert "does not serve 'tiny' but org/other" in message and "--served-model" in message
    with connected(babbling(name="org/other"), served_model="org/other") as backend:
        assert backend.name == "org/other"
    assert "takes texts and no token ids: llama.cpp's own, llama-server" in refusal(babbling(owner="me"))
    assert "needs another key (401): set PRUNUS_API_KEY" in refusal(babbling(key="right"))
    assert "but the engine's context is 60: lower the budget" in refusal(babbling(context=60))


def test_the_key_is_sent(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    monkeypatch.setenv("PRUNUS_API_KEY", "right")
    with connected(babbling(key="right")) as backend:
        assert backend.name


def test_a_server_on_this_machine_is_asked_without_the_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    with connected(babbling()) as backend:
        assert backend.name


def test_nobody_is_there_or_somebody_else(tmp_path):
    server, store = babbling(), tmp_path / "results.db"
    with serving(server), pytest.raises(PrunusError, match=r"answers 404.*such as http://localhost:8000/v1"):
        prunus.evaluate("tiny", PLAN, store, options=EngineOptions(url=f"{server.url}/other"))
    with pytest.raises(PrunusError, match=r"cannot be reached; is it running there\?"):
        prunus.evaluate("tiny", PLAN, store, options=EngineOptions(url=server.url))


@pytest.mark.slow
@pytest.mark.parametrize("fault", [429, 500, 503, "half"])
def test_passing_troubles_pass(tmp_path, fault):
    quiet, troubled = babbling(), babbling()
    with serving(quiet):
        prunus.evaluate("tiny", PLAN, tmp_path / "quiet.db", options=EngineOptions(url=quiet.url))
    troubled.faults = [fault, None, fault, fault] * 3
    with serving(troubled):
        prunus.evaluate("tiny", PLAN, tmp_path / "troubled.db", options=EngineOptions(url=troubled.url))
    assert not troubled.faults and rows(tmp_path / "troubled.db") == rows(tmp_path / "quiet.db")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (429, "answers 429: trouble 429 (6 tries)"),
        (500, "answers 500: trouble 500 (6 tries)"),
        (400, "answers 400: trouble 400"),
        ("half", "broke off"),
    ],
)
def test_lasting_trouble_loses_nothing(tmp_path, fault, message):
    """The first batch is stored, the second meets a server that is broken; once it is mended the run goes on."""
    server, store = babbling(), tmp_path / "results.db"
    calls = []
    original = server.complete

    def complete(body):
        calls.append(body)
        if len(calls) == 30:
            server.faults += [fault] * 200
        return original(body)

    server.complete = complete
    plan = replace(PLAN, limit=20, batch_size=5)
    with serving(server):
        with pytest.raises(PrunusError) as error:
            prunus.evaluate("tiny", plan, store, options=EngineOptions(url=server.url, concurrency=2))
        assert message in str(error.value) and "stored results are kept" in str(error.value)
        stored = rows(store)
        assert 0 < len(stored) < 40
        server.faults.clear()
        prunus.evaluate("tiny", plan, store, options=EngineOptions(url=server.url))
    assert len(rows(store)) == 40 and set(stored) <= set(rows(store))


def rows(store: Path) -> list[tuple]:
    with sqlite3.connect(store) as connection:
        found = connection.execute("SELECT * FROM sample ORDER BY problem_id, budget, draw").fetchall()
    connection.close()
    return found


@pytest.mark.slow
def test_the_run_says_what_computed_it_and_where(tmp_path):
    server = babbling()
    with serving(server):
        run_id = prunus.evaluate("tiny", PLAN, tmp_path / "results.db", options=EngineOptions(url=server.url)).run_id
    with serving(server):  # at another address
        assert (
            prunus.evaluate("tiny", PLAN, tmp_path / "results.db", options=EngineOptions(url=server.url)).run_id
            == run_id
        )
    with Store(tmp_path / "results.db") as store:
        run = store.run(run_id)
    told = {"engine": "openai", "server": "vllm 0.0", "token_ids": "ids", "stops": "ids"}
    assert told.items() <= run.environment.data.items() and run.plan.backend == "openai"
    assert (run.environment.address or "").startswith("http://127.0.0.1:")
    assert run.environment.data["served"] == "tiny"
    assert served.without_user("http://me:secret@host:1/v1") == "http://host:1/v1"


def test_within_a_notebook():
    """Where an event loop runs already."""
    server = babbling()

    async def cell() -> int:
        with connected(server) as backend:
            return len(complete(backend, [[5, 6]], [4], frozenset(), frozenset(), [1], GREEDY)[0].ids)

    assert asyncio.run(cell()) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "openai"], "needs the server's address: --url"),
        (["--engine", "hf", "--url", "http://localhost:1"], "url is for the engine llama.cpp, openai, not for hf"),
        (["--engine", "vllm", "--concurrency", "3"], "concurrency is for the engine llama.cpp, openai, not for vllm"),
        (
            ["--engine", "openai", "--url", "localhost:8000"],
            "'localhost:8000' is not the address of a server, such as http://",
        ),
        (["--engine", "openai", "--url", "http://[::1/v1"], "'http://[::1/v1' is not the address of a server"),
        (["--engine", "openai", "--url", "http://h:99999"], "'http://h:99999' is not the address of a server"),
        (["--engine", "vllm", "--engine-args", "{"], "engine arguments are neither key=value nor JSON"),
        (["--engine", "vllm", "--engine-args", "[]"], "must be key=value or a JSON object"),
        (["--request", "{"], "request fields are neither key=value nor JSON"),
        (["--request", '{"seed": 1}'], "the request field 'seed' is set by prunus"),
        (["--engine", "openai", "--url", "http://127.0.0.1:9", "--timeout", "0"], "timeout must be above 0"),
    ],
)
def test_options_of_other_engines_are_refused(arguments, message, tmp_path, capsys):
    store = tmp_path / "results.db"
    with pytest.raises(SystemExit) as exit_:
        main(["eval", "tiny", "--task", "tiny", "--budgets", "4", "--store", str(store), *arguments])
    assert exit_.value.code == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told


def test_arguments_from_the_command_line():
    assert parse_args(()) == {} and parse_args(['{"a": 1, "b": 2}', "a-b=1.5", "b=x y"]) == {
        "a": 1,
        "b": "x y",
        "a_b": 1.5,
    }
