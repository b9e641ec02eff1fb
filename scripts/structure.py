"""Print how large the package is and how it hangs together, for the working tree or for revisions side by side.

    python scripts/structure.py                                        # the working tree
    python scripts/structure.py --revision 2094e08 --revision HEAD     # side by side
    python scripts/structure.py --files weight                         # which files these are
    python scripts/structure.py --check                                # exit code 1 for a circle or a grown gauge

Everything is read from files; nothing is imported or run.

*Public functions that return dicts* are those of the API whose return type, as written, has `dict`, `Mapping` or `Any`
in it, also within a list, or is missing; a `to_json` of what they return is no matter.

*String keys* are texts such as `["seconds"]`, by which code reaches into plain data; `: Any` and `found` count these
words; *engines told apart* are the places that ask whether an engine streams or chats; *rooms of a step* are the least
number of `recipes`, `steps` and `pruning` that have a file or folder of the name of a step; *modules at the top* are
the files beside the folders.

Gauges of corridors: *looked up by key* counts `.get("key")`; *untyped mappings* are `dict` and `Mapping` with values of
type Any or object; *engines by string* are comparisons with an engine's name outside ENGINE_FILES;
*imports by string* are the package's own modules imported by a written name; *class names used twice* are those that
two files define; *earlier formats* are the files that know of a format before today's (names and texts EARLIER);
*leaning docstrings* begin with words that point to a neighbour (LEANING); *the name `one`* counts that word.

*Code lines* are lines with code: no blank lines, comments or docstrings. *Words* are those of all Markdown in docs/.
*Options* are those that docs/commands.md lists for each command, without the three that every command has (-q, -v,
--help); an option of several commands counts for each.

A *circle* is a set of modules that all import one another, directly or through others. Imports inside functions and
under `if TYPE_CHECKING` count, except those of the package's own __init__.py.

*Files on the way* of a thing are those with a definition (function, class or method) that uses one of the thing's names
(WAYS) and that the API's function reaches by names: the names that it uses, those that their definitions use, and so
on. Calls on objects whose class is not named are not seen, and tables (constants of a module, such as METHODS) are not
followed, so methods, tasks and backends are not counted; add one file for each that is used.
"""

import argparse
import ast
import io
import re
import subprocess
import sys
import tarfile
import tempfile
import tokenize
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = "prunus"
# Ways through the code: the API's function with which it begins, by its name in prunus/__init__.pyi, and the
# names by which code calls the thing.
WAYS = {
    "weight": ("prune", {"weight_OI", "tensors", "read_weight"}),
    "problem": ("evaluate", {"problem", "problems", "prompt", "prompts", "chain", "chains", "draw", "draws"}),
    "row": ("report", {"row", "rows", "table", "Table", "Run"}),
}
STEPS = ("prune", "drop", "experts", "width", "recover", "quantize", "gguf")
ROOMS = ("recipes", "steps", "pruning")
ENGINE_FILES = ("settings/engines", "evaluation/backends/")
EARLIER = r"\b(?:earlier|older) (?:version|format|prunus|store)s?|\b(?:STORED|REMOVED|LATER)\b"
LEANING = re.compile(r"(?:The same|Those|That of|What a|By what|The one)\b")
# The most that each gauge may count: `--check` fails above it. Lower a number when the count falls.
MOST = {
    "looked up by key": 155,
    "untyped mappings": 192,
    "engines by string": 0,
    "imports by string": 0,
    "class names used twice": 2,
    "earlier formats": 0,
    "leaning docstrings": 0,
    "the name `one`": 854,
}
COMMON_OPTIONS = {"--quiet", "--verbose", "--help", "--help-all"}
Name = tuple[str, str]  # module, name defined there
SKIPPED_TOKENS = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING}


@dataclass
class Module:
    """One file: its lines, its imports and its definitions."""

    name: str
    path: Path
    lines: int = 0  # that are not blank
    code_lines: int = 0
    imports: set[str] = field(default_factory=set)  # modules
    imported: dict[str, Name] = field(default_factory=dict)  # local name to its origin, whose name is "" for a module
    definitions: dict[str, list[ast.AST]] = field(default_factory=dict)


def read_package(source: Path, package: str = PACKAGE) -> dict[str, Module]:
    """Return every module of the package in the folder source, by its dotted name."""
    found: dict[str, Module] = {}
    for path in sorted((source / package).rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = Module(name, path)
    for module in found.values():
        text = module.path.read_text("utf-8")
        tree = ast.parse(text)
        module.lines = sum(bool(line.strip()) for line in text.splitlines())
        module.code_lines = count_code_lines(text, tree)
        for node in ast.walk(tree) if module.name != package else statements(tree):
            read_import(module, node, found)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                module.definitions.setdefault(node.name, []).append(node)
    return found


def count_code_lines(text: str, tree: ast.Module) -> int:
    """Return the number of lines with code; a statement of three lines counts three."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SKIPPED_TOKENS and token.type != tokenize.ENDMARKER:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines -= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return len(lines)


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield every node except those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        yield node
        yield from statements(node)


def read_import(module: Module, node: ast.AST, known: Mapping[str, Module]) -> None:
    """Add to the module what an import statement of it imports from this package."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            if alias.name in known:
                module.imports.add(alias.name)
    elif isinstance(node, ast.ImportFrom) and node.module is not None and node.module in known and not node.level:
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            target = (submodule, "") if submodule in known else (node.module, alias.name)
            module.imports.add(target[0])
            module.imported[alias.asname or alias.name] = target


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the sets of more than one module that reach one another (Tarjan's components), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            members = [stack.pop()]
            while members[-1] != name:
                members.append(stack.pop())
            if len(members) > 1:
                found.append(sorted(members))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return sorted(found)


def public(modules: Mapping[str, Module], package: str = PACKAGE) -> dict[str, Name]:
    """Return the module and name of everything in the API, by its name, by the stub beside the package's __init__.py.

    Earlier revisions have a table in __init__.py instead: {module: names}, or {function: module}.
    """
    found: dict[str, Name] = {}
    if (stub := modules[package].path.with_suffix(".pyi")).exists():
        for node in ast.parse(stub.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                found |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        return found
    for node in ast.walk(ast.parse(modules[package].path.read_text("utf-8"))):
        if isinstance(node, ast.Dict):
            for home, names in ast.literal_eval(node).items():
                if isinstance(names, tuple):
                    found |= {name: (home, name) for name in names}
                elif names in modules:
                    found[home] = names, home
    return found


def find_entry(modules: Mapping[str, Module], function: str, package: str = PACKAGE) -> Name:
    """Return the module and name of a function of the API, by `public`."""
    if function not in (found := public(modules, package)):
        raise SystemExit(f"{package}/__init__.pyi does not name '{function}'")
    return found[function]


def returns_dict(function: ast.AST) -> bool:
    """Whether the return type of a function, as written, has a dict or anything in it, or is missing."""
    if not isinstance(function, ast.FunctionDef):
        return False
    returned = function.returns
    return returned is None or bool(re.search(r"\b([Dd]ict|Mapping|Any)\b", ast.unparse(returned)))


def reached(modules: Mapping[str, Module], entry: Name, names: Set[str]) -> set[str]:
    """Return the modules with definitions that the entry function reaches by names and that use one of these names."""
    waiting, seen, found = [entry], {entry}, set()
    while waiting:
        module_name, name = waiting.pop()
        module = modules[module_name]
        nodes = module.definitions.get(name, [])
        if any(names & words(node) for node in nodes):
            found.add(module_name)
        for other in uses(modules, module, nodes):
            if other not in seen:
                seen.add(other)
                waiting.append(other)
    return found


def words(definition: ast.AST) -> set[str]:
    """Return the names of variables, parameters and attributes in a definition."""
    keys = {ast.Name: "id", ast.arg: "arg", ast.Attribute: "attr"}
    return {getattr(node, keys[type(node)]) for node in ast.walk(definition) if type(node) in keys}


def uses(modules: Mapping[str, Module], module: Module, nodes: list[ast.AST]) -> Iterator[Name]:
    """Yield the definitions whose names these nodes use: `name`, or `module.name` of an imported module.

    A variable of a function is no use of the definition of the same name.
    """
    parts = [
        part
        for node in nodes
        for part in ([*node.decorator_list, *node.bases, *node.body] if isinstance(node, ast.ClassDef) else [node])
    ]
    for node, variables in ((inner, bound(part)) for part in parts for inner in ast.walk(part)):
        if isinstance(node, ast.Name) and node.id not in variables:
            if node.id in module.definitions:
                yield module.name, node.id
            elif node.id in module.imported:
                yield from defined(modules, module.imported[node.id])
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            target = module.imported.get(node.value.id)
            if target is not None and target[1] == "":
                yield from defined(modules, (target[0], node.attr))


def bound(part: ast.AST) -> set[str]:
    """Return the names of the parameters and variables of a function, or of another part of a class."""
    inner = list(ast.walk(part))
    names = {node.id for node in inner if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {node.arg for node in inner if isinstance(node, ast.arg)}


def defined(modules: Mapping[str, Module], name: Name) -> Iterator[Name]:
    """Yield the definition of a name, through modules that import it from others; nothing for constants and modules."""
    seen = set()
    while name not in seen:
        seen.add(name)
        module = modules[name[0]]
        if name[1] in module.definitions:
            yield name
            return
        name = module.imported.get(name[1], name)


def way(modules: Mapping[str, Module], what: str) -> list[str]:
    """Return the modules on the way of a thing, sorted."""
    function, names = WAYS[what]
    return sorted(reached(modules, find_entry(modules, function), names))


def options_of(commands: str) -> dict[str, int]:
    """Return the number of options of each command from the text of docs/commands.md."""
    parts = re.findall(r"^## prunus (\S+)\n(.*?)(?=^## |\Z)", commands, re.DOTALL | re.MULTILINE)
    listed = {name: re.findall(r"^  (?:-\w, )?(--[\w-]+)", text, re.MULTILINE) for name, text in parts}
    return {name: sum(option not in COMMON_OPTIONS for option in options) for name, options in listed.items()}


def describe(root: Path) -> dict[str, int]:
    """Return the rows of the table for one tree: the number by the row's name."""
    modules = read_package(root / "src")
    options = options_of((root / "docs" / "commands.md").read_text("utf-8"))
    rows = {
        "non-blank lines": sum(module.lines for module in modules.values()),
        "code lines": sum(module.code_lines for module in modules.values()),
        "files": len(modules),
        "commands": len(options),
        "options": sum(options.values()),
        "options of prune": options.get("prune", 0),
        "words of docs": sum(len(page.read_text("utf-8").split()) for page in (root / "docs").rglob("*.md")),
        "import circles": len(circles({name: module.imports for name, module in modules.items()})),
        "dict[str, Any]": sum(module.path.read_text("utf-8").count("dict[str, Any]") for module in modules.values()),
        "public functions that return dicts": sum(
            returns_dict(modules[module].definitions[defined_as][-1])
            for name in public(modules).values()
            for module, defined_as in defined(modules, name)
        ),
        **gauges(root / "src" / PACKAGE),
    }
    rows |= {f"files on the way of a {what}": len(way(modules, what)) for what in WAYS}
    for module in modules.values():
        inside = module.path.relative_to(root / "src" / PACKAGE).parts[:-1]
        title = f"{PACKAGE}/{inside[0]}/" if inside else f"{PACKAGE}/"
        for row, count in ((f"lines in {title}", module.lines), (f"files in {title}", 1)):
            rows[row] = rows.get(row, 0) + count
    return rows


def gauges(package: Path) -> dict[str, int]:
    """Return what should not grow, by the row's name."""
    texts = [path.read_text("utf-8") for path in package.rglob("*.py")]
    patterns = {
        "string keys": r"\[\"[a-z_]+\"\]",
        ": Any": r": Any\b",
        "`found`": r"\bfound\b",
        "engines told apart": r"(?:BACKENDS\[[^]]+\]|\bentry)\.(?:streams|chats)\b"
        r"|isinstance\([^)]+(?:Streaming|ChatServer)\b",
    }
    steps = {name for name in STEPS if (package / "steps" / f"{name}.py").exists()}
    rooms = [
        sum(any((package / room / name).with_suffix(end).exists() for end in ("", ".py")) for room in ROOMS)
        for name in steps
    ]
    return {name: sum(len(re.findall(pattern, text)) for text in texts) for name, pattern in patterns.items()} | {
        **corridors(package),
        "rooms of a step": min(rooms, default=0),
        "modules at the top": len(list(package.glob("*.py"))),
        "lines of C++": sum(path.read_text("utf-8").count("\n") for path in package.rglob("*.cpp")),
    }


def corridors(package: Path) -> dict[str, int]:
    """Return the gauges of MOST for the package's folder, by the row's name."""
    texts = {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in package.rglob("*.py")}
    patterns = {
        "looked up by key": r"\.get\(\"[a-z_]+\"",
        "untyped mappings": r"(?:dict|Mapping)\[str, (?:Any|object)\]",
        "imports by string": r"import_module\(\"prunus",
        "the name `one`": r"\bone\b",
    }
    counts = {
        name: sum(len(re.findall(pattern, text)) for text in texts.values()) for name, pattern in patterns.items()
    }
    engine = re.compile(r"[!=]= \"(?:llama\.cpp|vllm|hf|openai)\"|startswith\(\"(?:vllm|llamacpp)")
    nodes = {name: list(ast.walk(ast.parse(text))) for name, text in texts.items()}
    homes: dict[str, set[str]] = {}
    for name, inside in nodes.items():
        for node in inside:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, set()).add(name)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = [
        ast.get_docstring(node) or "" for inside in nodes.values() for node in inside if isinstance(node, documented)
    ]
    return counts | {
        "engines by string": sum(
            len(engine.findall(text)) for name, text in texts.items() if not name.startswith(ENGINE_FILES)
        ),
        "class names used twice": sum(len(files) > 1 for files in homes.values()),
        "earlier formats": sum(bool(re.search(EARLIER, text)) for text in texts.values()),
        "leaning docstrings": sum(bool(LEANING.match(text)) for text in docstrings),
    }


def grown(package: Path) -> list[str]:
    """Return a line for each gauge of MOST that counts more than it may."""
    counts = corridors(package)
    return [f"{name}: {counts[name]}, of at most {most}" for name, most in MOST.items() if counts[name] > most]


def checked_out(revision: str, folder: Path) -> Path:
    """Write src/ and docs/ of a git revision to the folder; return it."""
    command = ["git", "-C", str(ROOT), "archive", revision, "src", "docs"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def table(columns: Mapping[str, Mapping[str, int]]) -> str:
    """Return a Markdown table with a column per tree."""
    names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
    lines = [["", *columns], ["---", *["---:"] * len(columns)]]
    lines += [[name, *(str(rows.get(name, 0)) for rows in columns.values())] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--revision", action="append", default=[], help="a git revision; repeatable")
    parser.add_argument("--files", choices=WAYS, help="list the files on one way instead")
    parser.add_argument("--check", action="store_true", help="fail if there is an import circle or a gauge has grown")
    options = parser.parse_args()
    if options.check:
        found = circles({name: module.imports for name, module in read_package(ROOT / "src").items()})
        for circle in found:
            print("import circle:", " <-> ".join(circle))
        larger = grown(ROOT / "src" / PACKAGE)
        print(*larger, sep="\n", end="\n" if larger else "")
        return 1 if found or larger else 0
    with tempfile.TemporaryDirectory() as folder:
        trees = {revision: checked_out(revision, Path(folder) / str(i)) for i, revision in enumerate(options.revision)}
        trees = trees or {"working tree": ROOT}
        if options.files:
            for title, root in trees.items():
                files = way(read_package(root / "src"), options.files)
                print(f"{title}: {len(files)}", *files, sep="\n  ")
        else:
            print(table({title: describe(root) for title, root in trees.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
