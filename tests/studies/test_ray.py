"""prunus study --ray: the rows of a run on this machine, whatever becomes of the workers. A cluster on loopback."""

import os
import pickle
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from babbling import babble
from completions_server import Server, serving
from ray_nodes import everything, receive, two_nodes
from scripted_backend import ScriptedBackend
from small_search import without_place
from small_study import SHORT, write_study
from tiny_chains import TOKENIZER

import prunus
from prunus.checkpoint.resolve import resolve
from prunus.cli import main
from prunus.errors import PrunusError
from prunus.evaluation.engine import Streaming
from prunus.evaluation.resolved_plan import problem_row
from prunus.settings.engines import BACKENDS
from prunus.store.store import Store
from prunus.studies import ray as ray_cluster
from prunus.studies.cells import Variant, open_model
from prunus.studies.file import read_study
from prunus.studies.ray import driver as ray_driver
from prunus.studies.ray import worker as ray_worker
from prunus.studies.ray.driver import Driver, StudyJob, WorkerHandle, next_job, take_along
from prunus.studies.ray.worker import FilePiece, ModelRef, Worker
from prunus.studies.variants import make_variant

RECIPES = """\
[[prune]]
method = ["magnitude", "sparsegpt"]
sparsity = 0.5
[[drop]]
blocks = 1
"""


@pytest.fixture(scope="module", autouse=True)
def own_folder() -> Iterator[None]:
    """Ray's folder, where it looks for running clusters; in /tmp/ray it may find one that ended without a word.

    Its path is short, because those of Ray's sockets are limited.
    """
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.fixture(scope="module")
def cluster(own_folder) -> Iterator[Any]:
    with two_nodes() as started:
        yield started


@pytest.fixture
def two_workers(monkeypatch) -> None:
    """No job is given to a worker before two have started, however busy the machine is: one of them will be lost."""
    step, started = Driver.step, []

    def patient(self: Driver) -> None:
        if started or sum(worker.info is not None for worker in self.workers) == 2:
            started.append(True)
            step(self)
        else:
            self.start_workers(2)
            self.wait()

    monkeypatch.setattr(Driver, "step", patient)


def write_one_batch(folder: Path) -> Path:
    """A study with one job, for which one worker is started."""
    file = write_study(folder, "")
    file.write_text(file.read_text().replace("batch_size = 2", "batch_size = 6"))
    return file


FIND = """\
[[find]]
method = "magnitude"
ladder = "0.1:0.5:0.1"
margin = 0.2
stop_margin = 0.25
most_tokens = 4000
look = 40
"""


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_a_search_decides_as_on_one_machine_though_a_worker_is_lost(
    tmp_path, monkeypatch, capsys, few_resamples, two_workers
):
    """On the cluster that is started where no address is given, which only this machine can reach.

    Later tests have a cluster running, which would be found.
    """
    original, killed = Driver.store_batch, []
    listening: set[str] = set()
    for name, value in ray_cluster.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    import ray

    monkeypatch.setattr(ray, "init", partial(ray.init, num_cpus=2))  # as many workers on every machine

    def store_batch(self: Driver, job: StudyJob, found: Any) -> None:
        original(self, job, found)
        at_work = [one.info for one in self.workers if one.job and one.job is not job and one.info]
        if at_work and not killed:
            for process in psutil.Process().children(recursive=True):
                connections = process.net_connections("inet")
                listening.update(one.laddr.ip for one in connections if one.status == psutil.CONN_LISTEN)
            killed.append(at_work[0].process)
            os.kill(at_work[0].process, signal.SIGKILL)

    add = Store.add_samples

    def all_solved(self: Store, run_id: str, samples: Any, thoughts: Any) -> int:
        return add(self, run_id, [replace(one, correct=True, ended="natural") for one in samples], thoughts)

    monkeypatch.setattr(Store, "add_samples", all_solved)
    monkeypatch.setattr(Driver, "store_batch", store_batch)
    file = write_study(tmp_path, FIND)
    file.write_text(file.read_text().replace("limit = 6", "limit = 60").replace("batch_size = 2", "batch_size = 10"))
    study, searches = read_study(file), {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray's workers have
    try:
        for name, address in (("ray", "auto"), ("local", None)):
            (tmp_path / name).mkdir()
            prunus.evaluate(study.models[0], study.plans[0], tmp_path / name / "results.db")  # no worker starts for it
            done = prunus.study(file, out=tmp_path / name, ray=address).to_json()
            (searches[name],) = done["searches"]
    finally:
        torch.set_num_threads(threads)
    assert "starting one for this study" in capsys.readouterr().err
    assert listening and {address.removeprefix("::ffff:") for address in listening} <= {"127.0.0.1", "::1"}
    assert not any("raylet" in process.name() for process in psutil.Process().children(recursive=True))
    assert killed
    ours, theirs = (searches[name] for name in ("ray", "local"))
    assert ours["found"] == theirs["found"] is not None and ours["claims"] == theirs["claims"]
    assert files(Path(ours["out"])) == files(Path(theirs["out"]))
    rows, alone = (everything(tmp_path / name / "results.db")["samples"] for name in ("ray", "local"))
    assert rows == alone, "nothing is computed that no decision needs"
    with Store(tmp_path / "ray" / "results.db") as store:
        assert {run.model.name.startswith("model/") for run in store.runs() if run.adaptive} == {True}
        assert [run.model.name for run in store.runs() if not run.adaptive] == ["model"]


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_the_store_is_that_of_a_local_run_though_workers_are_lost(
    cluster, tmp_path, monkeypatch, capsys, few_resamples, two_workers
):
    """One worker is killed in the middle of a batch, later a whole node goes; every row is there, and once.

    So are the checkpoints, byte by byte.
    """
    original, stored, killed = Driver.store_batch, [], []

    def store_batch(self: Driver, job: StudyJob, found: Any) -> None:
        original(self, job, found)
        stored.append(job)
        at_work = [one.info for one in self.workers if one.job and one.job is not job and one.info]
        if len(stored) >= 2 and at_work and not killed:
            killed.append(at_work[0].process)
            os.kill(at_work[0].process, signal.SIGKILL)
        if len(stored) == 6:
            cluster.remove_node(cluster.list_all_nodes()[1], allow_graceful=False)

    monkeypatch.setattr(Driver, "store_batch", store_batch)
    monkeypatch.setattr(ray_worker, "PIECE", 4096)  # files travel in many pieces
    file = write_study(tmp_path, RECIPES, f"{SHORT}\nbase_samples = 2", "keep_checkpoints = true")
    done = prunus.study(file, out=tmp_path / "ray", ray=cluster.address).to_json()
    told = capsys.readouterr().err
    assert " was lost while " in told and "another one repeats the job" in told
    assert done["cells"] == 4 and len(stored) == 15 and Path(done["report"]).exists()
    assert not list((tmp_path / "ray" / "variants").glob("*.part"))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as Ray's workers have
    try:
        prunus.study(file, out=tmp_path / "local")
    finally:
        torch.set_num_threads(threads)
    ours, theirs = everything(tmp_path / "ray" / "results.db"), everything(tmp_path / "local" / "results.db")
    assert ours == theirs and sorted(len(rows) for rows in ours["samples"].values()) == [18, 18, 18, 36]
    for folder in ("variants", "checkpoints"):
        assert files(tmp_path / "local" / folder) == files(tmp_path / "ray" / folder) != {}
    kept_names = {path.name for path in (tmp_path / "ray" / "checkpoints" / "model").iterdir()}
    assert kept_names == {"magnitude-50", "sparsegpt-50", "shortgpt-1"} and not (tmp_path / "ray" / "making").exists()

    monkeypatch.setattr(ray_driver, "connected", None)  # nothing is left to do there
    prunus.study(file, out=tmp_path / "ray", ray=cluster.address)


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_servings_on_a_cluster_have_the_rows_of_a_local_study_after_a_stop(
    cluster, tmp_path, monkeypatch, few_resamples
):
    """The driver is stopped in the middle, as Ctrl-C does; the second call draws only what is left."""
    servings = '[[serving]]\nname = "plain"\n[[serving]]\nname = "harsh"\nrequest = { repetition_penalty = 1.8 }\n'
    file = write_study(tmp_path, '[[prune]]\nsparsity = 0.5\nmethod = "magnitude"\n' + servings)
    original, stored = Driver.store_batch, []

    def store_batch(self: Driver, job: StudyJob, found: Any) -> None:
        original(self, job, found)
        stored.append((job.cell and job.cell.name, len(found.samples)))
        if len(stored) == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Driver, "store_batch", store_batch)
        prunus.study(file, out=tmp_path / "ray", ray=cluster.address)
    with monkeypatch.context() as patch:
        patch.setattr(Driver, "store_batch", store_batch)
        done = prunus.study(file, out=tmp_path / "ray", ray=cluster.address)
    assert done.cells == 4 and sum(rows for _, rows in stored) == 4 * 18, "no row twice"
    assert {name for name, _ in stored} == {f"{v} · {s}" for v in ("dense", "magnitude-50") for s in ("plain", "harsh")}
    prunus.study(file, out=tmp_path / "local")
    ours, theirs = everything(tmp_path / "ray" / "results.db"), everything(tmp_path / "local" / "results.db")
    assert {run: [(one.thinking, one.text) for one in rows] for run, rows in ours["samples"].items()} == {
        run: [(one.thinking, one.text) for one in rows] for run, rows in theirs["samples"].items()
    }
    assert len({str(rows) for rows in ours["samples"].values()}) == 4


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): without_place(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_worker_makes_a_recovered_variant_as_this_machine_does(tmp_path, monkeypatch):
    """The variant travels by pickle, and its files do not depend on where they are made."""
    study = read_study(write_study(tmp_path, "[[prune]]\nrecover = {epochs = 1, step_tokens = 16}\n"))
    model = open_model(study, study.models[0], resolve(study.models[0]))
    variant = model.variants[1]
    make_variant(model, variant, tmp_path / "here", "cpu", keep=False)
    monkeypatch.setattr(ray_worker, "fetch", lambda reference: reference)
    ref = ModelRef(model.name, model.checkpoint.checksum(), {(0, 0): model.cells[0].resolved})
    sent_study, sent_variant = pickle.loads(pickle.dumps((study, variant)))  # noqa: S301  of our own making
    worker = Worker(str(tmp_path), sent_study, "cpu")
    made = [*worker.make((ref, model.name), sent_variant, keep=False)]
    names = [f"variants/{variant.key}{part}.safetensors" for part in (".vectors", "")]
    assert [str(piece.name) for piece in made] == names and files(worker.folder) == {}
    receive(made, model, variant, tmp_path / "there")
    assert files(tmp_path / "there" / "variants") == files(tmp_path / "here" / "variants")
    worker.scratch.close()


@contextmanager
def served_study(folder: Path) -> Iterator[tuple[Server, Path]]:
    """A server without a model, and a study of it."""
    server = Server(ScriptedBackend(babble), TOKENIZER, name="model")
    with serving(server):
        settings = (
            f'engine = "openai"\nprofile = "s1"\ntemperature = 1.0\n[engine]\nurl = "{server.url}"\nconcurrency = 1'
        )
        yield server, write_study(folder, "", settings)


@pytest.mark.slow
def test_a_worker_sends_the_rows_of_an_engine_that_streams_as_they_come(tmp_path, monkeypatch):
    """With one request at a time, chains come one by one: those of all batches in one job, without a barrier."""
    with served_study(tmp_path) as (_, file):
        study = read_study(file)
        model = open_model(study, study.models[0], resolve(study.models[0]))
        work = model.cells[0].resolved
        monkeypatch.setattr(ray_worker, "fetch", lambda reference: reference)
        ref = ModelRef(model.name, model.checkpoint.checksum(), {(0, 0): work})
        worker = Worker(str(tmp_path), study, "cpu")
        chains = [chain for batch in work.batches for chain in batch]
        found = list(worker.answer((ref, model.name), model.variants[0], {}, (0, 0), chains, frozenset()))
        rest = list(worker.answer((ref, model.name), model.variants[0], {}, (0, 0), chains, work.keys(chains[1:])))
        worker.engine.release()
        worker.scratch.close()
        prunus.evaluate(study.models[0], study.plans[0], tmp_path / "here.db", options=study.servings[0].engine)
    with Store(tmp_path / "here.db") as store:
        here = {(s.problem_id, s.budget): (s.thinking, s.text) for s in store.samples(work.run_id, texts=True)}
    assert len(found) > 1 and all(len(one.samples) % 3 == 0 for one in found)
    assert {(s.problem_id, s.budget): (s.thinking, s.text) for one in found for s in one.samples} == here
    assert sum(len(one.samples) for one in found) == len(here) == 6 * 3
    assert {(s.problem_id, s.budget, s.draw) for one in rest for s in one.samples} == work.keys(chains[:1])


def test_a_job_of_an_engine_that_streams_has_several_batches():
    """Those of its cell that come as early as it does, and at most half of a worker's part of all that is left."""
    model, one, other = SimpleNamespace(label="m"), SimpleNamespace(serving=0), SimpleNamespace(serving=0)
    rest = [job(model, "wanda", one) for _ in range(8)] + [job(model, "owl", other) for _ in range(4)]
    early = job(model, "wanda", one, early=True)
    jobs = [early, *rest, job(model, "wanda", None, early=True)]
    for number, each in enumerate(jobs):
        each.batch = [(number, 0)]
    jobs.remove(first := rest[0])
    take_along(first, jobs, workers=2)
    assert first.batch == [(1, 0), (2, 0), (3, 0)], "11 are left, 2.75 of which are half of a worker's part"
    assert early in jobs and len(jobs) == 14 - 3
    take_along(early, jobs, workers=1)
    assert early.batch == [(0, 0)] and len(jobs) == 14 - 3
    jobs.remove(rest[3])
    take_along(rest[3], jobs, workers=100)
    assert rest[3].batch == [(4, 0)]


def test_the_table_says_which_backends_stream():
    for entry in BACKENDS.values():
        module, _, name = entry.load.partition(":")
        assert issubclass(getattr(import_module(module), name.partition(".")[0]), Streaming) == entry.streams


@pytest.mark.slow
def test_after_a_loss_an_engine_is_told_what_is_stored(tmp_path):
    """Also of batches of which an earlier run stored a part; an engine that streams then draws only the rest."""
    with served_study(tmp_path) as (_, file):
        study = read_study(file)
        model = open_model(study, study.models[0], resolve(study.models[0]))
        cell = model.cells[0]
        prunus.evaluate(study.models[0], study.plans[0], tmp_path / "whole.db", options=study.servings[0].engine)
    batch, asked = cell.resolved.batches[0], []
    kept = cell.resolved.problems[batch[0][0]].id
    remote = SimpleNamespace(remote=lambda *arguments: asked.append(arguments[-2:]))
    worker = WorkerHandle(SimpleNamespace(answer=SimpleNamespace(options=lambda **_: remote)))
    made = driver(worker)
    with Store(tmp_path / "whole.db") as whole, Store(tmp_path / "part.db", create=True) as made.store:
        made.store.add_problems(map(problem_row, cell.resolved.problems))
        made.store.add_run(whole.run(cell.run_id))
        made.store.add_samples(cell.run_id, [s for s in whole.samples(cell.run_id) if s.problem_id == kept])
        made.models, made.claimed, made.calls = {model.name: []}, {cell.run_id}, {}
        made.assign(worker, StudyJob(model, model.variants[0], cell, batch, True))
    assert len(batch) == 2 and asked == [(batch, cell.resolved.keys(batch[:1]))]


def test_what_a_lost_worker_was_sending_is_not_taken_for_complete(tmp_path):
    """A kept checkpoint appears whole, in place of an older one, and before the variant's own file."""
    model: Any = SimpleNamespace(name="m", label="m")
    variant = Variant("wanda", "", (), ("key",))
    kept_at, whole = tmp_path / "checkpoints" / "m" / "wanda", {"config.json": b"{}", "deep/er.jinja": b"0123456789"}
    sent = {f"checkpoint/{name}": content for name, content in whole.items()} | {"variants/key.safetensors": b"abcd"}
    cut = [(name, content[at : at + 3]) for name, content in sent.items() for at in range(0, len(content), 3)]
    pieces = [FilePiece(Path(name), np.frombuffer(content, np.uint8), 16) for name, content in cut]
    kept_at.mkdir(parents=True)
    (kept_at / "config.json").write_text("older")

    remote = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *_: object()))
    made = driver(worker := WorkerHandle(SimpleNamespace(make=remote)))
    made.folder, made.keeps, made.models, made.calls = tmp_path, True, {"m": []}, {}
    for _ in range(2):
        made.assign(worker, StudyJob(model, variant, None, [], True))
        for piece in pieces[:-1]:
            made.store_piece(variant, piece)
        assert files(kept_at) == {"config.json": b"older"} and not (tmp_path / "variants").exists()
    made.assign(worker, StudyJob(model, variant, None, [], True))
    receive(pieces, model, variant, tmp_path, keep=True)
    assert files(kept_at) == whole and files(tmp_path / "variants") == {"key.safetensors": b"abcd"}
    assert not list((tmp_path / "making").iterdir())


@pytest.mark.thorough
@pytest.mark.slow
@pytest.mark.xdist_group("ray")
def test_errors_of_a_node_and_too_large_a_wish_are_one_line(cluster, tmp_path, capsys):
    arguments = ["study", str(write_one_batch(tmp_path)), "--out", str(tmp_path / "out"), "--ray", cluster.address]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--gpus-per-task", "1"])
    assert stopped.value.code == 2
    assert "no node of the cluster has the 1 GPUs and 1 CPUs" in capsys.readouterr().err

    def fails():
        raise PrunusError("the model has other weights here")

    with ray_cluster.connected(cluster.address):
        import ray

        worker = WorkerHandle(None, info=ray_worker.WorkerInfo("node-1", 1, prunus.__version__))
        with pytest.raises(PrunusError, match=r"^on node-1: the model has other weights here$"):
            driver(worker).handle_result(worker, ray.remote(fails).remote())


def test_a_worker_refuses_a_model_of_other_weights(tmp_path, monkeypatch):
    study = read_study(write_study(tmp_path, ""))
    model = open_model(study, study.models[0], resolve(study.models[0]))
    monkeypatch.setattr(ray_worker, "fetch", lambda reference: reference)
    worker = Worker(str(tmp_path), study, "cpu")
    with pytest.raises(PrunusError, match="model' has other weights here than where the study was started"):
        worker.open_model((ModelRef(model.name, "another", {(0, 0): model.cells[0].resolved}), model.name))
    worker.scratch.close()


@pytest.mark.parametrize("there", [{}, {"NVIDIA_TF32_OVERRIDE": "0"}])
def test_a_worker_refuses_other_arithmetic_than_where_the_study_began(tmp_path, monkeypatch, there):
    """The run's id has the variables of the process that started the study, but nodes have their own."""
    study = read_study(write_study(tmp_path, ""))
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    model = open_model(study, study.models[0], resolve(study.models[0]))
    monkeypatch.setattr(ray_worker, "fetch", lambda reference: reference)
    reference = ModelRef(model.name, model.checkpoint.checksum(), {(0, 0): model.cells[0].resolved})
    worker = Worker(str(tmp_path), study, "cpu")
    assert worker.open_model((reference, model.name)).name == model.name
    worker.model = None
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    began = there.get("NVIDIA_TF32_OVERRIDE", "not set")
    with pytest.raises(PrunusError, match=f"NVIDIA_TF32_OVERRIDE is 1 here and {began} where the study began"):
        worker.open_model((reference, model.name))
    worker.scratch.close()


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("no-such-host.invalid:6379", "no-such-host.invalid:6379"),
        ("6379", "that is not HOST:PORT"),
        ("ray://127.0.0.1:10001", "Ray's client, which cannot drive a study"),
    ],
)
def test_a_wrong_address_is_one_line_and_nothing_is_made(tmp_path, address, reason, capsys):
    file = write_study(tmp_path, "")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["study", str(file), "--out", str(tmp_path / "out"), "--ray", address])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and told.startswith("error: no Ray cluster at") and reason in told
    assert told.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_another_service_at_the_address_is_no_cluster(monkeypatch):
    monkeypatch.setattr(ray_cluster, "PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(PrunusError, match="does not answer as a Ray cluster"):
            ray_cluster.find_cluster(address)
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(PrunusError, match=address):
            ray_cluster.find_cluster("auto")


@pytest.mark.slow
def test_files_that_are_named_like_modules_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    assert "the wrong one" not in str(ray_cluster.why_unreachable("auto"))


def test_without_ray_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_cluster, "find_spec", lambda _: None)
    with pytest.raises(PrunusError, match=r"pip install '\.\[ray\]'"):
        prunus.study(write_study(tmp_path, ""), out=tmp_path / "out", ray="auto")


def test_workers_wished_for_without_ray(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["study", str(write_study(tmp_path, "")), "--out", str(tmp_path / "out"), "--gpus-per-task", "1"])
    assert stopped.value.code == 2 and "belong to --ray" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_capacity_counts_node_by_node(monkeypatch):
    """Three GPUs on one node and one on another hold one worker of two; the dead node counts for nothing."""
    ray = pytest.importorskip("ray")
    nodes = [{"Alive": alive, "Resources": {"GPU": gpus, "CPU": 8.0}} for alive, gpus in ((1, 3.0), (1, 1.0), (0, 8.0))]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert [ray_cluster.capacity(gpus, 1) for gpus in (0.5, 1, 2, 4)] == [8, 4, 1, 0]
    assert ray_cluster.capacity(0, 3) == 4 and ray_cluster.has_gpus()


def job(model: Any, name: str, cell: Any = None, early: bool = False) -> StudyJob:
    return StudyJob(model, Variant(name, "", (), (name,)), cell, [], early)


def test_what_a_worker_is_given():
    """Early ones, then of its own model and variant, else where few are at work; never what is not made."""
    one, other, cell = SimpleNamespace(label="one"), SimpleNamespace(label="other"), SimpleNamespace(serving=0)
    dense, late, foreign = job(one, "dense", cell), job(one, "wanda", cell), job(other, "other-dense", cell)
    fresh, at_dense = WorkerHandle(None), WorkerHandle(None, last=dense)
    assert next_job([late, dense], {"wanda"}, fresh, []) is dense
    assert next_job([late], {"wanda"}, fresh, []) is None
    make = job(one, "wanda", None, early=True)
    assert next_job([dense, make, late], {"wanda"}, at_dense, []) is make, "early first"
    assert next_job([late, dense], set(), at_dense, []) is dense, "its own variant"
    assert next_job([foreign, late], set(), at_dense, []) is late, "its own model"
    served = job(one, "dense", SimpleNamespace(serving=1))
    assert next_job([served, late], set(), at_dense, []) is late, "as it is served there"
    busy = WorkerHandle(None, job=dense)
    assert next_job([dense, late], set(), fresh, [busy]) is late, "where nobody is"
    assert next_job([dense, late], set(), fresh, []) is dense, "else in order"


def driver(worker: WorkerHandle) -> Driver:
    """One without a cluster."""
    made = Driver.__new__(Driver)
    made.workers, made.jobs, made.failed_starts = [worker], [], 0
    return made


def test_what_loses_every_worker_is_given_up(capsys):
    made = driver(
        worker := WorkerHandle(
            None, job=job(SimpleNamespace(label="m"), "wanda", SimpleNamespace(serving=0, name="wanda"))
        )
    )
    for _ in range(ray_driver.ATTEMPTS - 1):
        made.lose(worker, RuntimeError("\nThe actor died.\n\tpid: 1"))
        assert made.jobs.pop() is worker.job and made.workers == []
        made.workers.append(worker)
    assert "a worker on ? was lost while evaluating wanda of m (The actor died.)" in capsys.readouterr().err
    with pytest.raises(PrunusError, match=r"3 workers were lost while .* of m, the last on \? \(The actor died\.\)"):
        made.lose(worker, RuntimeError("The actor died."))


def test_workers_that_never_start_are_given_up():
    made = driver(worker := WorkerHandle(None))
    with pytest.raises(PrunusError, match="lacks prunus"):
        made.lose(worker, RuntimeError("The actor died.\nModuleNotFoundError: No module named 'prunus'"))
    with pytest.raises(PrunusError, match=r"workers end while they start \(why\)"):
        for _ in range(ray_driver.ATTEMPTS):
            made.workers = [worker]
            made.lose(worker, RuntimeError("why"))


def test_the_example_of_a_cluster_is_one_to_ray():
    """By Ray's own schema."""
    pytest.importorskip("ray")
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((Path(__file__).parents[2] / "examples" / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    with pytest.raises(Exception, match="most_workers"):  # the schema refuses what Ray does not know
        validate_config(prepare_config(config | {"most_workers": 2}))
