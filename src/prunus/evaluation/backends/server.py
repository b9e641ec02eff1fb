"""A model on a server, as engines that send requests to it share it."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx2 as httpx

from prunus.checkpoint.resolve import hub_origin
from prunus.evaluation.backends import served
from prunus.evaluation.backends.served import Told, in_short, meta_of
from prunus.evaluation.backends.transport import with_client
from prunus.evaluation.engine import Engine
from prunus.evaluation.requests import Sampling
from prunus.settings.engines import EngineOptions


class Server(Engine):
    """A model on a server. Making one raises PrunusError if the server is not served.reached or has another model.

    folder: of the model, for its names. name: of the model on the server. places: requests that the server runs at
    once, None if unknown.
    """

    def __init__(self, folder: Path, engine: EngineOptions, vocabulary: int) -> None:
        """vocabulary: number of ids of the tokenizer, for kinds of servers that sample ids."""
        assert engine.url is not None
        self.folder, self.engine, self.url = folder, engine, served.api_of(engine.url)
        self.name, self.version, self.told = "", "", Told()
        self.started = isinstance(engine, served.Started)
        self.server: str = ""  # its owner, by which kinds of servers are told apart
        self.places: int | None = None
        self.owned = ExitStack()

    @classmethod
    def load(cls, folder: Path, device: str, vocabulary: int, engine: EngineOptions) -> Self:
        """A server that was served.reached, or started if the options have a command. Only the server has a device."""
        with ExitStack() as stack:
            made = cls(folder, stack.enter_context(served.reached(engine, folder)), vocabulary)
            with_client(made.engine, made.connect)
            made.owned = stack.pop_all()
        return made

    def close(self) -> None:
        """Stop the server if `load` started it."""
        self.owned.close()

    async def connect(self, client: httpx.AsyncClient) -> None:
        """Find the model on the server."""
        self.entry = await served.find_model(client, self.url, names_of(self.folder), self.engine.served_model)
        self.name, self.context = self.entry["id"], served.context_of(self.entry)
        self.server = str(self.entry.get("owned_by") or "unknown")
        self.told = await served.told_by(client, self.url, self.server)
        self.version, self.places = self.told.version, self.told.places

    @property
    def identity(self) -> dict[str, object]:
        """What tells this server from another: address, name of the model there, and what it tells of itself.

        Of one that Prunus starts the name and paths are left out, as they follow from the folder of its model.
        """
        if self.started:
            return {"told": {key: value for key, value in self.told.settings.items() if key != "model_path"}}
        meta, root = meta_of(self.entry), self.entry.get("root")
        told = {key: in_short(meta[key]) for key in served.OF_MODEL if key in meta} | dict(self.told.settings)
        told |= {"root": in_short(root)} if root else {}
        return {"address": served.without_user(self.url), "served": in_short(self.name), "told": told}

    def payload(self, seed: int, sampling: Sampling) -> dict[str, Any]:
        """The part of a request that all servers understand."""
        return {
            "model": self.name,
            "stream": False,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed if self.server.startswith("vllm") else seed & 0x7FFFFFFF,  # others take 32 bits
        }


def names_of(folder: Path) -> set[str]:
    """The names a server may give a folder's model: its path, its name, its hub id if in the hub's cache."""
    return {str(folder), str(folder.resolve()), folder.name, hub_origin(folder).get("hub", folder.name)}
