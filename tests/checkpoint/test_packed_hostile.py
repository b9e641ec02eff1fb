"""Files of variants and weights that are damaged, or made to harm: refused in one line, soon, and in little memory."""

import hashlib
import json
import random
import resource
import struct
import time
import zlib
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_models import refused, variant_weights
from tiny_models import make_model

from prunus.checkpoint.checkpoint import Checkpoint
from prunus.checkpoint.packed_files import read_variant, variant_about, write_variant
from prunus.checkpoint.safetensors_file import ITEMSIZES, read_header
from prunus.errors import PrunusError


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A variant with weights in every form, and what reads it: (path, function that gives {name: bytes})."""
    folder = tmp_path_factory.mktemp("victim")
    source = Checkpoint(make_model(folder / "dense", blocks=1, dtype=torch.bfloat16))
    write_variant(folder / "v.safetensors", source, variant_weights(source).items(), {"n": 1})

    def variant(path):
        about = json.dumps(variant_about(path)).encode()
        return {"about": about} | {
            name: tensor.view(torch.uint8).numpy().tobytes() for name, tensor in read_variant(path, source)
        }

    return folder / "v.safetensors", variant


def header_of(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), 8 + length


def mutate(data, generator, of_header=0.5):
    """Random damage: bits, bytes, runs, cuts, insertions; such a share of it in the header."""
    data = bytearray(data)
    header = min(len(data), 8 + int.from_bytes(data[:4], "little"))
    end = header if generator.random() < of_header else len(data)
    place = generator.randrange(end)
    kind = generator.randrange(8)
    if kind == 0:
        data[place] ^= 1 << generator.randrange(8)
    elif kind == 1:
        data[place] = generator.randrange(256)
    elif kind == 2:
        data[generator.randrange(8)] = generator.randrange(256)
    elif kind == 3:
        del data[place:]
    elif kind == 4:
        del data[place : place + generator.randrange(1, 100)]
    elif kind == 5:
        data[place:place] = generator.randbytes(generator.randrange(1, 100))
    elif kind == 6:
        data[place : place + 64] = generator.randbytes(len(data[place : place + 64]))
    else:
        digits = [index for index in range(8, header) if chr(data[index]).isdigit()]
        if digits:
            data[generator.choice(digits)] = ord(generator.choice("0123456789"))
    return bytes(data)


ROUNDS = 1000  # of each kind of damage to each kind of file
SPARE_BYTES, SPARE_SECONDS = 1 << 28, 1.0  # what reading a file of some kilobytes may take at most


@contextmanager
def little_memory():
    """Within this no more than SPARE_BYTES can be allocated; who asks for more meets a MemoryError."""
    lines = Path("/proc/self/status").read_text().splitlines() if Path("/proc/self/status").exists() else []
    used = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize")]
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used[0] + SPARE_BYTES if used else soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def attempt(read, target):
    """What reading gives, None where it is refused; any other error, a long time, or text over several lines fails."""
    started = time.process_time()
    try:
        with little_memory():
            return read(target)
    except PrunusError as error:
        assert str(error).isprintable()
        return None
    finally:
        assert time.process_time() - started < SPARE_SECONDS


@pytest.mark.thorough
def test_random_damage_is_found(victim, tmp_path):
    path, read = victim
    data, content = path.read_bytes(), read(path)
    generator, target, found = random.Random(0), tmp_path / "damaged", 0
    for _ in range(ROUNDS):
        spoilt = data
        for _ in range(generator.randrange(1, 4)):
            spoilt = mutate(spoilt, generator) if len(spoilt) > 200 else spoilt
        target.write_bytes(spoilt)
        result = attempt(read, target)
        if result is None:
            found += 1
        else:
            assert result == content and spoilt == data
    assert found > 0.7 * ROUNDS


@pytest.mark.thorough
def test_random_damage_to_dense_files_is_found_or_harmless(tmp_path):
    """They have no checksums: numbers may change, but every tensor lies in the file and is as long as its shape."""
    data = (make_model(tmp_path / "dense", blocks=1) / "model.safetensors").read_bytes()
    generator, target, found = random.Random(0), tmp_path / "damaged", 0

    def read(path):
        return {name: (stored, b"".join(stored.chunks())) for name, stored in read_header(path).items()}

    for _ in range(ROUNDS):
        spoilt = mutate(data, generator, of_header=0.9)
        target.write_bytes(spoilt)
        result = attempt(read, target)
        found += result is None
        for stored, content in (result or {}).values():
            assert 8 <= stored.start <= stored.end <= len(spoilt) and len(content) == stored.nbytes
            assert stored.nbytes == prod(stored.shape) * ITEMSIZES.get(stored.dtype, stored.nbytes / prod(stored.shape))
    assert found > 0.4 * ROUNDS


def with_checksums(header, info, body):
    """A file whose checksums and digest all match, whatever it says: what a hostile writer would make."""
    for name, row in info["tensors"].items():
        for index, part in enumerate(PARTS_OF.get(str(row.get("form")), ())):
            try:
                start, end = header[name + part]["data_offsets"]
                row["crc32"][index] = zlib.crc32(body[start:end])
            except (KeyError, TypeError, ValueError, IndexError):
                pass
    header = dict(header)
    header["__metadata__"] = header["__metadata__"] | {
        "prunus_packed_sha256": "0" * 64,
        "prunus_packed": json.dumps(info),
    }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 64)
    text = text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1)
    return struct.pack("<Q", len(text)) + text + body


PARTS_OF = {
    "packed": (".starts", ".mask", ".values"),
    "mask": (".mask",),
}
LIES = [
    0,
    1,
    7,
    -1,
    63,
    64,
    1 << 31,
    1 << 32,
    1 << 62,
    1 << 63,
    1 << 200,
    1.5,
    True,
    None,
    "8",
    [],
    {},
    "F32",
    "I8",
    "U8",
]
FORMS = ["dense", "packed", "int8", "mask", "source", "", "variant", "checkpoint", True, False]


def lie(value, generator):
    """The JSON value with one number, text or list in it replaced, removed or doubled."""
    if isinstance(value, dict) and value and generator.random() < 0.95:
        key = generator.choice(list(value))
        if generator.random() < 0.05:
            return {name: item for name, item in value.items() if name != key}
        return value | {key: lie(value[key], generator)}
    if isinstance(value, list) and value and generator.random() < 0.8:
        index = generator.randrange(len(value))
        return [*value[:index], lie(value[index], generator), *value[index + 1 :]]
    if isinstance(value, list):
        return generator.choice([value[:-1], value + value, value[::-1], [*value, 1]])
    if type(value) is int and generator.random() < 0.5:
        return value + generator.choice([-64, -16, -8, -1, 1, 8, 16, 64])
    return generator.choice(LIES + FORMS)


@pytest.mark.thorough
def test_lies_with_matching_checksums_are_found_or_harmless(victim, tmp_path):
    path, read = victim
    data, content = path.read_bytes(), read(path)
    header, base = header_of(data)
    info: Any = json.loads(header["__metadata__"]["prunus_packed"])
    body = data[base:]
    target, generator = tmp_path / "lying", random.Random(0)
    target.write_bytes(with_checksums(header, json.loads(json.dumps(info)), body))
    assert read(target) == content
    refusals = tries = 0
    for _ in range(ROUNDS):
        new_header, new_body = json.loads(json.dumps(header)), bytearray(body)
        new_info: Any = json.loads(json.dumps(info))
        for _ in range(generator.randrange(1, 4)):
            choice = generator.random()
            if choice < 0.4:
                name = generator.choice([key for key in header if key != "__metadata__"])
                new_header[name] = lie(new_header.get(name), generator)
            elif choice < 0.7:
                new_info = lie(new_info, generator)
            else:
                spoil_part(header, new_body, generator)
        try:
            target.write_bytes(with_checksums(new_header, new_info, bytes(new_body)))
        except (AttributeError, KeyError, TypeError):
            continue  # no longer a table that checksums could be put into
        tries += 1
        result = attempt(read, target)
        refusals += result is None
        # Matching checksums vouch for what the file says of itself: each tensor is what its table says, in full.
        for name, value in (result or {}).items():
            row = new_info["tensors"][name] if name != "about" else None
            assert row is None or len(value) == prod(row["shape"]) * ITEMSIZES[row["dtype"]]
    assert tries > 0.8 * ROUNDS and refusals > 0.5 * tries


def spoil_part(header, body, generator):
    """Put another byte into the mask, values or starts of some tensor."""
    part = generator.choice([key for key in header if key.endswith((".starts", ".mask", ".values"))])
    start, end = header[part]["data_offsets"]
    if start < end:
        body[generator.randrange(start, end)] = generator.choice((0x00, 0x7F, 0x80, 0xFF))


def test_headers_that_are_no_tables(victim, tmp_path):
    path, read = victim
    data = path.read_bytes()
    header, base = header_of(data)
    info = json.loads(header["__metadata__"]["prunus_packed"])
    nested = b"[" * 100_000 + b"]" * 100_000
    texts = [
        b"[]",
        b"1",
        b"{}",
        b'{"__metadata__": []}',
        b'{"__metadata__": {"prunus_packed_sha256": 1}}',
        nested,
        b"\xff",
    ]
    for text in texts:
        (tmp_path / "f").write_bytes(struct.pack("<Q", len(text)) + text)
        refused("is damaged or not a packed file", read, tmp_path / "f")
    for length in (0, 1 << 63, (1 << 64) - 1, base - 7, len(data)):
        (tmp_path / "f").write_bytes(struct.pack("<Q", length) + data[8:])
        refused("is damaged or not a packed file", read, tmp_path / "f")
    (tmp_path / "f").write_bytes(with_checksums(header, info | {"version": 2}, data[base:]))
    refused("format version 2; this version of prunus reads only 1", read, tmp_path / "f")


NOT_PRINTED = "a name is too long or cannot be printed"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.layers.\u00b2.weight", "its source has no"),  # a digit that int() does not take
        ("model.layers." + "9" * 490 + ".weight", "its source has no"),
        ("../../weight", "its source has no"),
        ("model.layers." + "9" * 5000 + ".weight", NOT_PRINTED),
        ("\ud800", NOT_PRINTED),
        ("\x1b[2J", NOT_PRINTED),
        ("a\nb", NOT_PRINTED),
        ("a\0b", NOT_PRINTED),
    ],
)
def test_names_of_tensors_do_no_harm(victim, tmp_path, name, words):
    def also(info):
        info["tensors"][name] = {"form": "source", "dtype": "BF16", "shape": [1, 1], "crc32": []}

    refused(words, victim[1], rewritten(victim[0], tmp_path / "v", also))


def test_shapes_without_end_do_no_harm(victim, tmp_path):
    def endless(info):
        next(iter(info["tensors"].values()))["shape"] = [1 << 62, 1 << 62]

    refused("its source has no", victim[1], rewritten(victim[0], tmp_path / "v", endless))


@pytest.mark.parametrize("name", ["\0", "a\nb", "x" * 9999])
def test_names_of_the_source_do_no_harm(victim, tmp_path, name):
    refused(NOT_PRINTED, victim[1], rewritten(victim[0], tmp_path / "v", lambda info: info["model"].update(name=name)))


def rewritten(path, target, change):
    """A copy of a file whose table was changed, and which vouches for itself."""
    data = path.read_bytes()
    header, base = header_of(data)
    info = json.loads(header["__metadata__"]["prunus_packed"])
    change(info)
    target.write_bytes(with_checksums(header, info, data[base:]))
    return target
