"""What stands at the top of the repository for others: agents, containers, and whoever releases."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = re.findall(r"^([A-Z]+) (.*)$", (ROOT / "Dockerfile").read_text(), re.M)


def test_pages_for_agents_are_short_and_lead_somewhere():
    skill, index = (ROOT / "SKILL.md").read_text(), (ROOT / "llms.txt").read_text()
    assert len(skill.splitlines()) <= 80 and re.match(r"---\nname: prunus\ndescription: .{40,}\n---\n", skill)
    linked = [*re.findall(r"\]\(([^)]+)\)", index), *re.findall(r"`(docs/[\w./-]+)`", skill)]
    assert len(linked) > 10 and all((ROOT / path).is_file() for path in linked)


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_install_the_command(tmp_path):
    """What is copied is enough to build and run Prunus; packages of others are those of this environment."""
    sources, folder = tmp_path / "src", tmp_path / "site"
    sources.mkdir()
    for _, words in (step for step in STEPS if step[0] == "COPY"):
        *files, target = words.split()
        for name in files:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, sources / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / name, sources / target)
    (install,) = [words for kind, words in STEPS if kind == "RUN" and words.endswith(" .")]
    command = install.replace("pip install", f"{sys.executable} -m pip install --quiet --target {folder}")
    subprocess.run(
        [*command.split(), "--no-deps", "--no-build-isolation", "--no-index"], cwd=sources, check=True, timeout=120
    )
    code = "import prunus, sys; from prunus.cli import main; print(prunus.__file__); main(sys.argv[1:])"
    assert dict(STEPS)["ENTRYPOINT"] == '["prunus"]'
    done = subprocess.run(
        [sys.executable, "-c", code, "tasks"], env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"}, cwd=tmp_path,
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(folder)) and "gsm8k" in done.stdout


WRONG = {
    "": "",
    "version": "name the version",
    "dirty": "something is not committed",
    "tag": "the tag v9.8.7 is there already",
    "code": "src/prunus/version.py has another version",
    "changelog": "CHANGELOG.md has no ## 9.8.7",
    "citation": "CITATION.cff has another version",
    "branch": "the branch is not main",
    "check": "",
    "dist": "built dist/prunus-0.0.1-py3-none-any.whl",
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_a_release_ends_before_the_tag_if_anything_is_wrong(wrong, tmp_path):
    def git(*words: str) -> str:
        given = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(given, cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    built = "0.0.1" if wrong == "dist" else "9.8.7"
    files = {
        "src/prunus/version.py": f'__version__ = "{"9.8.6" if wrong == "code" else "9.8.7"}"\n',
        "CHANGELOG.md": f"## 9.8.7 ({'unreleased' if wrong == 'changelog' else '2026-12-02'})\n",
        "CITATION.cff": f"version: {'9.8.6' if wrong == 'citation' else '9.8.7'}\n",
        ".gitignore": "dist\n",
        "Makefile": f"check:\n\t{'false' if wrong == 'check' else 'true'}\n"
        f"dist:\n\tmkdir -p dist && touch dist/prunus-{built}-py3-none-any.whl\n.PHONY: check dist\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    git("init", "-q", "-b", "other" if wrong == "branch" else "main")
    git("add", "-A")
    git("commit", "-q", "-m", "a")
    if wrong == "tag":
        git("tag", "v9.8.7")
    if wrong == "dirty":
        (tmp_path / "CHANGELOG.md").write_text("## 9.8.7 (2026-12-03)\n")
    version = "v9.8" if wrong == "version" else "9.8.7"
    script = ["bash", str(ROOT / "scripts" / "release.sh"), version]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode == 0) == (wrong == "") and WRONG[wrong] in done.stderr
    assert git("tag").split() == (["v9.8.7"] if wrong in ("", "tag") else [])
