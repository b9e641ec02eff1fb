"""Find and join a Ray cluster, and count the workers that fit on it."""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec

from prunus import progress
from prunus.errors import PrunusError, pip
from prunus.studies.file import CellGrid

AUTO, LOCAL = "auto", "local"
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 20.0  # where no cluster answers, Ray itself tries for minutes and then ends the process
# Settings of Ray: no usage reports, and a cluster that is started here listens on loopback only.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class Cluster:
    """A Ray cluster. address: as find_cluster returns it. gpus, cpus: of each worker; gpus None: 1 if there are any."""

    address: str
    gpus: float | None = None
    cpus: float = 1


def cluster_for(grid: CellGrid, ray: str | None, gpus_per_task: float | None, cpus_per_task: float) -> Cluster | None:
    """The cluster at the address `ray`, as for find_cluster; None if ray is None.

    Raises PrunusError where it cannot be reached or the study cannot run on Ray, and if GPUs or CPUs of workers are
    given without an address.
    """
    if ray is None:
        if gpus_per_task is not None or cpus_per_task != 1:
            raise PrunusError("--gpus-per-task and --cpus-per-task belong to --ray: give it too, or leave them out")
        return None
    if grid.serves:
        grid.fail(None, "'serve' starts one server here; leave --ray out, or use engine = \"vllm\"")
    if any(plan.control == "native" for plan in grid.plans):
        grid.fail(None, "control native asks one server from here; leave --ray out")
    return Cluster(find_cluster(ray), gpus_per_task, cpus_per_task)


def find_cluster(address: str) -> str:
    """An address for connected(): HOST:PORT, `auto` for a cluster that runs on this machine, or `local` to start one.

    address: HOST:PORT of the cluster's head, or `auto`: the address in RAY_ADDRESS, else a cluster that runs on this
    machine, else `local`. Raises PrunusError where a cluster that was named cannot be reached.
    """
    if find_spec("ray") is None:
        raise PrunusError(f"--ray needs the package ray: {pip('ray')}, on every node of the cluster")
    if address == AUTO:
        address = os.environ.get("RAY_ADDRESS", AUTO)
    reason = why_unreachable(address)
    if reason and address == AUTO:
        return LOCAL
    if reason:
        raise PrunusError(f"no Ray cluster at '{address}' ({reason}); give HOST:PORT as `ray start --head` prints it")
    return address


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Within the context this process is a driver of the cluster. address: as find_cluster returns it."""
    if address == LOCAL:
        progress.say("no Ray cluster runs on this machine; starting one for this study")
        os.environ |= ENVIRONMENT
    import ray

    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            include_dashboard=False if address == LOCAL else None,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:  # this machine is no node, or Ray's versions differ
        raise PrunusError(f"the Ray cluster at '{address}' cannot be joined: {first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


def why_unreachable(address: str) -> str | None:
    """The reason why no cluster can be reached at an address; None if one can.

    A child process asks Ray, since only a process can be stopped after a time.
    """
    if "://" in address:
        return "addresses with :// belong to Ray's client, which cannot drive a study"
    host, _, port = address.rpartition(":")
    if address != AUTO:
        if not host or not port.isdecimal():
            return "that is not HOST:PORT"
        try:
            socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            return str(getattr(error, "strerror", None) or error)
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "status", "--address", address]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, text=True, check=False)
    except subprocess.TimeoutExpired:
        return "the process at that address does not answer as a Ray cluster"
    return None if done.returncode == 0 else (done.stderr.strip().splitlines() or ["it is not a Ray cluster"])[-1]


def first_line(error: BaseException) -> str:
    """The first line of an error of Ray; the other lines are about Ray's own processes."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def has_gpus() -> bool:
    """Whether any node has a GPU."""
    import ray

    return any(node["Resources"].get("GPU", 0) > 0 for node in ray.nodes() if node["Alive"])


def capacity(gpus: float, cpus: float) -> int:
    """Number of workers with these resources that fit on the nodes when nothing else runs on them."""
    import ray

    needs = {"CPU": cpus, **({"GPU": gpus} if gpus > 0 else {})}
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(has.get(kind, 0) / share) for kind, share in needs.items()) for has in alive)
