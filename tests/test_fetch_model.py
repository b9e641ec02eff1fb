"""scripts/fetch_model.py says which packages are missing before it downloads."""

import sys

import fetch_model
import pytest


@pytest.mark.parametrize("absent", [("gguf", "accelerate"), ("torch",)])
def test_missing_packages_are_named_before_anything_is_downloaded(tmp_path, monkeypatch, absent):
    monkeypatch.setattr(sys, "argv", ["fetch_model.py", "smollm2", str(tmp_path / "model")])
    monkeypatch.setattr(fetch_model, "find_spec", lambda name: None if name in absent else object())
    monkeypatch.setattr(fetch_model, "download", lambda *_: pytest.fail("it downloads"))
    with pytest.raises(SystemExit, match=f"needs {' and '.join(absent)}: pip install {' '.join(absent)}$"):
        fetch_model.main()
    assert not any(tmp_path.iterdir())


def test_the_docstring_names_what_it_needs():
    assert all(name in (fetch_model.__doc__ or "") for name in fetch_model.NEEDED)
