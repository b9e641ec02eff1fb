"""The JSON Schemas of TOML files are those of the settings: they take what Prunus reads, and refuse what it refuses."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

jsonschema = pytest.importorskip("jsonschema")  # comes with Ray
ROOT = Path(__file__).parents[1]
FILES = {
    "study": [*sorted((ROOT / "examples").glob("*.toml")), ROOT / "tests" / "data" / "study" / "every_table.toml"],
    "profile": sorted((ROOT / "src" / "prunus" / "evaluation" / "profiles").glob("*.toml")),
}


def errors(name: str, text: str) -> list[str]:
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_text())
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(tomllib.loads(text))]


@pytest.mark.slow
def test_the_files_are_those_of_the_settings():
    script = ROOT / "scripts" / "schemas.py"
    assert subprocess.run([sys.executable, script, "--check"], check=False, timeout=60).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
def test_every_example_and_profile_is_valid(name, file):
    assert errors(name, file.read_text()) == []


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("study", '[eval]\nbackend = "vllm"\n', "'backend' was unexpected"),
        ("study", '[eval]\nengine = "vlm"\n', "'vlm' is not"),
        ("study", '[[prune]]\nmethod = ["wanda", "wonda"]\n', "['wanda', 'wonda'] is not valid"),
        ("study", '[[prune]]\nsparsity = "half"\n', "'half' is not valid"),
        ("study", "[[find]]\nmax_tokens = 9\n", "'max_tokens' was unexpected"),
        ("forms", '[[gguf]]\ntypo = "q8_0"\n', "'typo' was unexpected"),
        ("forms", "[eval]\n", "'eval' was unexpected"),
        ("forms", '[[gguf]]\ntype = "q8_0"\n[[chain]]\nsteps = [{ quantize = { bits = 4 } }]\n', ""),
        ("profile", '[think]\nmatch = "tokens"\n', "'tokens' is not one of"),
    ],
)
def test_mistakes_are_found(name, text, told):
    found = errors(name, text)
    assert any(told in message for message in found) if told else found == []
