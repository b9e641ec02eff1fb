"""A server is started by a command for every variant of a study, and stopped after it."""

import re
import shlex
import shutil
import sys
import time
from pathlib import Path

import pytest
from small_study import SHORT, write_study

import prunus
from prunus.checkpoint.resolve import tiny_folder
from prunus.errors import PrunusError
from prunus.evaluation.backends import opened
from prunus.evaluation.backends.served import printed_by, running_server
from prunus.machine_load import SPINS
from prunus.settings.engines import EngineOptions
from prunus.store.labels import label
from prunus.store.store import Store
from prunus.studies.engine import StudyEngine

SCRIPT = Path(__file__).parents[1] / "helpers" / "serve_words.py"
COMMAND = f"{sys.executable} {SCRIPT} {{model}} {{port}}"


def test_threads_and_instructions_are_read_from_what_llama_cpp_prints(tmp_path):
    """The lines are those of llama-server, the second one as with its option -lv 4."""
    lines = [
        "0.14.476.595 I cmn          init: llama threadpool init, n_threads = 1",
        "system_info: n_threads = 1 (n_threads_batch = 1) / 2 | CPU : SSE3 = 1 | AVX2 = 1 | AMX_INT8 = 1 | SVE = 0 | ",
        "0.18.041.509 I srv    load_model: initializing, n_slots = 1, n_ctx_slot = 256, kv_unified = 'false'",
    ]
    with (tmp_path / "log").open("w+b") as log:
        log.write("\n".join(lines).encode())
        log.flush()
        log.seek(5)
        assert printed_by(log) == "n_threads = 1, SSE3 = 1, AVX2 = 1, AMX_INT8 = 1"
        assert log.tell() == 5, "the server writes where it wrote before"


@pytest.mark.slow
def test_every_variant_is_served_from_its_own_folder(tmp_path, monkeypatch):
    """The study is stopped within the pruned variant; the next run goes on, and prunes nothing again."""
    log = tmp_path / "log"
    settings = f'{SHORT}\nengine = "openai"\n[engine]\nserve = "{COMMAND} {log}"\n'
    file = write_study(tmp_path, '[[prune]]\nmethod = "magnitude"\n', settings)
    original = StudyEngine.served

    def stopping(self, model, variant, as_gguf):
        if variant.steps:
            raise PrunusError("stopped")
        return original(self, model, variant, as_gguf)

    with monkeypatch.context() as patched:
        patched.setattr(StudyEngine, "served", stopping)
        with pytest.raises(PrunusError, match="stopped"):
            prunus.study(file, out=tmp_path / "out")
    done = prunus.study(file, out=tmp_path / "out").to_json()
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 2 and lines[0][0] == str(tmp_path / "model") and lines[0][1] != lines[1][1]
    assert not Path(lines[1][0]).exists(), "the variant's folder is gone"
    with Store(done["store"]) as store:
        found = {label(run.model.manifest.history): len(store.samples(run.run_id)) for run in store.runs()}
    assert found == {"dense": 18, "Magnitude 20\N{NO-BREAK SPACE}%": 18}


@pytest.mark.slow
def test_a_server_is_started_probed_and_stopped(tmp_path):
    with opened("openai", tiny_folder(), "auto", 300, EngineOptions(serve=COMMAND)) as backend:
        url = backend.engine.url  # type: ignore[attr-defined]
        assert url and backend.description.data["server"] == "vllm 0.0"
    with (
        pytest.raises(PrunusError, match="cannot be reached"),
        opened("openai", tiny_folder(), "auto", 300, EngineOptions(url=url)),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("ours", "theirs"), [(SPINS, "300000"), ("7", "7"), (None, None)])
def test_threads_of_a_server_spin_as_without_prunus(tmp_path, monkeypatch, ours, theirs):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if ours is not None:
        monkeypatch.setenv("GOMP_SPINCOUNT", ours)
    tells = "import os, sys; print('TOLD', os.environ.get('GOMP_SPINCOUNT'), '{model} {port}'); sys.exit(3)"
    serve = shlex.join([sys.executable, "-c", tells])
    with (
        pytest.raises(PrunusError, match=f"TOLD {theirs} "),
        running_server(EngineOptions(serve=serve, timeout=60), tmp_path),
    ):
        pass


@pytest.mark.parametrize("place", ["{context}", "{slots}"])
def test_places_that_choose_alone_fills_in_are_refused(tmp_path, place):
    options = EngineOptions(serve=f"llama-server -m {{model}} --port {{port}} -c {place}", timeout=60)
    says = f"{re.escape(place)} of a serve command is filled in by `choose` alone: write a number"
    with pytest.raises(PrunusError, match=says), running_server(options, tmp_path):
        pass


@pytest.mark.slow
def test_servers_that_do_not_start(tmp_path, monkeypatch):
    shutil.copytree(tiny_folder(), tmp_path / "broken")
    says = r"exit code 3 .*: RuntimeError: no room for the weights"
    with (
        pytest.raises(PrunusError, match=says) as error,
        running_server(EngineOptions(serve=COMMAND, timeout=60), tmp_path / "broken"),
    ):
        pass
    assert "\n" not in str(error.value)
    says = "cannot be started: 'no-such-program': No such file"
    with (
        pytest.raises(PrunusError, match=says),
        running_server(EngineOptions(serve="no-such-program {model} {port}", timeout=60), tmp_path),
    ):
        pass
    monkeypatch.setattr("prunus.evaluation.backends.served.STOP_SECONDS", 0.2)
    sleeps = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
    deaf = f"{sys.executable} -c '{sleeps}' {{model}} {{port}}"
    begin = time.monotonic()
    says = r"did not answer within 0\.5 s \(timeout\): it printed nothing"
    with pytest.raises(PrunusError, match=says), running_server(EngineOptions(serve=deaf, timeout=0.5), tmp_path):
        pass
    assert time.monotonic() - begin < 30, "it ignores SIGTERM and is killed"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"serve": "vllm serve {model}"}, "serve lacks {port}"),
        ({"serve": "vllm 'serve {model} {port}"}, "serve is not a command"),
        ({"serve": COMMAND, "url": "http://localhost:1"}, "url and serve exclude each other"),
        ({"serve": COMMAND, "tokenizer": "tiny"}, "tokenizer and serve exclude each other"),
    ],
)
def test_wrong_commands(changes, message):
    with pytest.raises(PrunusError, match=message):
        EngineOptions(**changes)
