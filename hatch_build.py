"""Wheels with the compiled libraries where there is a compiler, pure ones elsewhere; see src/prunus/native/build.py."""

import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelHook(BuildHookInterface):
    """Compiles the libraries into a temporary folder, never into the source tree, and puts them into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """version: `editable` for installs that use the source tree; those compile at first use."""
        if version == "editable":
            return
        build = self._load_build()
        if not build.supported():
            return
        self.folder = tempfile.TemporaryDirectory()
        libraries = {Path(self.folder.name) / build.prebuilt(source).name: source for source in build.SOURCES}
        try:
            for library, source in libraries.items():
                build.compile_library(source, library)
        except build.BuildError as error:
            sys.stderr.write(f"prunus: nothing compiled in this wheel: {error}; it is compiled at first use\n")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{build.platform_tag(libraries)}"
        build_data["force_include"] |= {str(library): f"prunus/native/{library.name}" for library in libraries}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is made; the libraries are in it."""
        if hasattr(self, "folder"):
            self.folder.cleanup()

    def _load_build(self) -> Any:
        path = Path(self.root) / "src" / "prunus" / "native" / "build.py"
        spec = importlib.util.spec_from_file_location("prunus_native_build", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
