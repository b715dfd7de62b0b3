"""The house rules, run as a test: layers, lengths, bans with their replacement, entry points, words, texts.

Each rule is a function from source text to a list of complaints, and each has a negative control: a bad
snippet that it must flag and a good one that it must not. A rule that is in the way is changed here, in a
change of its own.
"""

from __future__ import annotations

import ast
import importlib
import io
import re
import subprocess
import sys
import tokenize
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import pytest

from tests import vocabulary

ROOT = Path(__file__).resolve().parent.parent
SOURCE_FOLDERS = ("raft", "kvstore", "tests", "tools", "bench", "examples")
PRODUCT_FOLDERS = ("raft", "kvstore")
SKIPPED_FOLDERS = frozenset({".venv", ".git", "__pycache__", "build", "dist", "results", "node_modules"})
GENERATED = re.compile(r"_pb2(_grpc)?\.pyi?$")

FUNCTION_LINES_MAX = 70  # fits on one screen
FILE_LINES_MAX = 700  # beyond it a file holds more than one idea
NODE_LINES_MAX = {"raft.node": 400, "raft.node.node": 350}  # the loop, and every part of it, stay small
NODE_ARGUMENTS_MAX = 6  # of a constructor in raft.node; more collaborators are grouped by what they mean

# --- layers: a package may import these packages besides itself ---

RAFT = ("raft.core", "raft.storage", "raft.transport", "raft.node")
ENGINE = ("kvstore.engine", "kvstore.errors")
REPLICA = (*RAFT, *ENGINE, "kvstore.replica")
SERVER = (*REPLICA, "kvstore.configuration", "kvstore.watch", "kvstore.lease", "kvstore.version")
BELOW_RPC = (*SERVER, "kvstore.server")
COMPOSED = (*BELOW_RPC, "kvstore.wire", "kvstore.http2", "kvstore.rpc", "kvstore.http", "kvstore.peering")
COMMANDS = ("kvstore.client", "kvstore.interrupts")

PACKAGES: dict[str, tuple[str, ...]] = {
    "raft": (),  # the entry point: loads nothing
    "raft.core": (),
    "raft.storage": ("raft.core",),
    "raft.transport": ("raft.core",),
    "raft.sim": ("raft.core",),
    "raft.node": ("raft.core", "raft.storage", "raft.transport"),
    "kvstore": (
        "kvstore.app",
        "kvstore.configuration",
        "kvstore.version",
        "kvstore.client",
    ),  # the entry point: loads lazily
    "kvstore.version": (),
    "kvstore.errors": (),
    "kvstore.engine": ("kvstore.errors",),
    "kvstore.wire": (),
    "kvstore.http2": (),  # knows neither Raft nor keys; for servers, clients and peers
    # the member, never with generated messages
    "kvstore.configuration": (),
    "kvstore.watch": ENGINE,
    "kvstore.replica": (*RAFT, *ENGINE),
    "kvstore.lease": (*REPLICA, "kvstore.watch"),
    "kvstore.server": SERVER,
    "kvstore.rpc": (*BELOW_RPC, "kvstore.wire", "kvstore.http2"),
    "kvstore.http": BELOW_RPC,
    "kvstore.peering": ("raft.transport", "kvstore.http2"),
    "kvstore.client": ("kvstore.wire", "kvstore.errors", "kvstore.version", "kvstore.http2"),  # its own tower
    "kvstore.app": COMPOSED,
    "kvstore.interrupts": (),
    "kvstore.verify": ("kvstore.errors", "kvstore.wire", *COMMANDS, "kvstore.devcluster"),
    "kvstore.testing": (
        *COMPOSED,
        "raft.sim",
        "kvstore.app",
        "kvstore.client",
        "kvstore.devcluster",
        "kvstore.verify",
    ),
    "kvstore.devcluster": (*COMPOSED, "kvstore.app", *COMMANDS),
    "kvstore.cli": (*COMPOSED, "kvstore.app", *COMMANDS, "kvstore.devcluster", "kvstore.__main__"),
    "kvstore.__main__": ("kvstore.cli",),
}
PURE_PACKAGES = ("raft.core", "kvstore.engine", "kvstore.errors")
IMPURE_MODULES = frozenset(
    {
        *("asyncio", "concurrent", "datetime", "google", "grpc", "io", "logging", "multiprocessing", "os"),
        *("pathlib", "queue", "random", "secrets", "selectors", "shutil", "socket", "subprocess", "tempfile"),
        *("threading", "time", "uuid"),
    }
)
HEAVY_MODULES = ("asyncio", "grpc", "google.protobuf", "logging", "random", "socket")
"""What importing a pure package must not load, seen in a fresh interpreter."""


def python_files(*folders: str) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not SKIPPED_FOLDERS.intersection(path.parts) and not GENERATED.search(path.name):
                yield path


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str | None:
    """The longest prefix of the module's name that is a package of the table; None without one."""
    parts = module.split(".")
    if len(parts) == 1:
        return module if module in PACKAGES else None
    return ".".join(parts[:2]) if ".".join(parts[:2]) in PACKAGES else None


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(tree: ast.AST, module: str, *, is_package: bool, with_types: bool) -> Iterator[tuple[int, str]]:
    """Every module that the source imports, also inside functions: (line, absolute name)."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child) and not with_types:
            continue
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            base = module.split(".")
            base = base[: len(base) - child.level + is_package] if child.level else []
            name = ".".join([*base, *([child.module] if child.module else [])])
            if name in ("raft", "kvstore"):  # `from raft import core` means the package
                yield from ((child.lineno, f"{name}.{alias.name}") for alias in child.names)
            else:
                yield child.lineno, name
        yield from imports(child, module, is_package=is_package, with_types=with_types)


def layer_complaints(source: str, module: str, *, is_package: bool = False) -> list[str]:
    package = package_of(module)
    if package is None:
        return [f"{module}: belongs to no package of the table in tests/test_tidy.py"]
    found = []
    for line, name in imports(ast.parse(source), module, is_package=is_package, with_types=True):
        if name.split(".")[0] not in PRODUCT_FOLDERS:
            continue
        target = package_of(name)
        if target != package and target not in PACKAGES[package]:
            found.append(f"{module}:{line}: {package} may not import {name}; allowed: {PACKAGES[package]}")
    return found


def purity_complaints(source: str, module: str) -> list[str]:
    found = [
        f"{module}:{line}: a pure package may not import {name}; take it as an input"
        for line, name in imports(ast.parse(source), module, is_package=False, with_types=False)
        if name.split(".")[0] in IMPURE_MODULES
    ]
    return found + set_iteration_complaints(source, module)


def is_set_expression(node: ast.expr, sets: frozenset[str]) -> bool:
    if isinstance(node, ast.Set | ast.SetComp):
        return True
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in ("set", "frozenset")
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr | ast.BitAnd | ast.Sub):
        return is_set_expression(node.left, sets)
    return isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node) in sets


def set_names(scope: ast.AST) -> frozenset[str]:
    """Names and attributes of one scope that are annotated or made as sets."""
    found = set()
    for node in ast.walk(scope):
        if isinstance(node, ast.AnnAssign) and re.match(
            r"(frozen)?set\b", ast.unparse(node.annotation), re.IGNORECASE
        ):
            found.add(ast.unparse(node.target))
        elif isinstance(node, ast.arg) and node.annotation is not None:
            if re.match(r"(frozen)?set\b", ast.unparse(node.annotation), re.IGNORECASE):
                found.add(node.arg)
        elif isinstance(node, ast.Assign) and is_set_expression(node.value, frozenset()):
            found.update(ast.unparse(target) for target in node.targets)
    return frozenset(found)


ORDER_FREE = frozenset({"all", "any", "frozenset", "len", "max", "min", "set", "sorted", "sum"})
"""What comes out does not depend on the order of what goes in."""


def ordered_walks(scope: ast.AST) -> Iterator[ast.expr]:
    """What is iterated over where the order can be seen."""
    free = set()
    for node in ast.walk(scope):
        if isinstance(node, ast.SetComp):
            free.add(node)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ORDER_FREE:
            free.update(node.args)
    for node in ast.walk(scope):
        if isinstance(node, ast.For):
            yield node.iter
        elif isinstance(node, ast.ListComp | ast.GeneratorExp | ast.DictComp) and node not in free:
            yield from (generator.iter for generator in node.generators)


def set_iteration_complaints(source: str, module: str) -> list[str]:
    """Sets have no order that every member shares, so nothing replicated may walk one."""
    tree = ast.parse(source)
    attributes = frozenset(name for name in set_names(tree) if name.startswith("self."))
    found = []
    for scope in (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ):
        names = set_names(scope) | attributes
        lines = [walk.lineno for walk in ordered_walks(scope) if is_set_expression(walk, names)]
        found += [f"{module}:{line}: iterates over a set; use sorted() or a dict" for line in lines]
    return found


def cycles(graph: dict[str, frozenset[str]]) -> list[str]:
    """Import cycles, each reported once, as a chain."""
    found, done = [], set()

    def walk(name: str, trail: tuple[str, ...]) -> None:
        if name in trail:
            found.append(" -> ".join((*trail[trail.index(name) :], name)))
        elif name not in done:
            for target in sorted(graph.get(name, frozenset())):
                walk(target, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        walk(name, ())
    return found


LATE_CYCLES_ALLOWED = ("kvstore.testing", "kvstore.verify", "raft.sim")
"""Packages of tests, whose modules may refer to each other for types and inside functions."""


def import_graph(sources: Mapping[str, str], packages: Collection[str] = ()) -> dict[str, frozenset[str]]:
    """Which module imports which, also for types and inside functions.

    `sources` by module name; `packages` are the modules that are an `__init__`. Of the modules in
    LATE_CYCLES_ALLOWED only what they load on import counts.
    """
    graph = {}
    for module, source in sources.items():
        late = not module.startswith(LATE_CYCLES_ALLOWED)
        tree = ast.parse(source)
        if not late:
            on_import = ast.Import | ast.ImportFrom | ast.Try | ast.If
            tree.body = [statement for statement in tree.body if isinstance(statement, on_import)]
        targets = {name for _, name in imports(tree, module, is_package=module in packages, with_types=late)}
        for node in ast.walk(
            tree
        ):  # `from package import module` loads the module, whatever the package does
            if isinstance(node, ast.ImportFrom) and node.module in targets:
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= inside & sources.keys()
                if inside <= sources.keys():
                    targets.discard(node.module)
        graph[module] = frozenset(targets & sources.keys())
    return graph


# --- lengths ---


def length_complaints(source: str, module: str) -> list[str]:
    lines = source.count("\n")
    most = NODE_LINES_MAX.get(module, NODE_LINES_MAX.get(module.rpartition(".")[0], FILE_LINES_MAX))
    found = [f"{module}: {lines} lines, at most {most}"] if lines > most else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and module.startswith("raft.node."):
            count = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs) - 1
            if count > NODE_ARGUMENTS_MAX:
                found.append(f"{module}:{node.lineno}: {count} arguments, at most {NODE_ARGUMENTS_MAX}")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            length = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                assert docstring.end_lineno is not None
                length -= docstring.end_lineno - docstring.lineno + 1
            if length > FUNCTION_LINES_MAX:
                found.append(
                    f"{module}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES_MAX}"
                )
    return found


# --- bans, each with its replacement ---

CALL_BANS = {
    "time.time": "time.monotonic for durations; wall time only where it is displayed, as an exemption here",
    "datetime.now": "an injected clock",
    "datetime.datetime.now": "an injected clock",
    "datetime.utcnow": "an injected clock",
    "random.random": "an injected random.Random",
    "random.randint": "an injected random.Random",
    "random.randrange": "an injected random.Random",
    "random.choice": "an injected random.Random",
    "random.choices": "an injected random.Random",
    "random.sample": "an injected random.Random",
    "random.shuffle": "an injected random.Random",
    "random.uniform": "an injected random.Random",
    "random.seed": "an injected random.Random",
}
PRINTING_PACKAGES = ("kvstore.cli", "kvstore.devcluster")
CALL_EXEMPTIONS: dict[tuple[str, str], str] = {
    ("bench.clusters", "time.sleep"): "the one step of every poll; its callers hold the deadlines",
    ("kvstore.verify.run.clock_faults", "time.time"): "what a member's wrong clock is compared with",
    ("tests.jepsen.test_clocks", "time.time"): "what a process's wrong clock is compared with",
}
"""(module, call) -> the reason why this module may make it."""


def leftover_marker() -> re.Pattern[str]:
    return re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3)) + r")\b")


def ban_complaints(source: str, module: str) -> list[str]:
    found = []
    is_product = module.split(".")[0] in PRODUCT_FOLDERS
    tree = ast.parse(source)
    polls = {inner for loop in ast.walk(tree) if isinstance(loop, ast.While) for inner in ast.walk(loop)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            if call in CALL_BANS and (module, call) not in CALL_EXEMPTIONS:
                found.append(f"{module}:{node.lineno}: {call} is banned; use {CALL_BANS[call]}")
            if call == "time.sleep" and node not in polls and (module, call) not in CALL_EXEMPTIONS:
                found.append(f"{module}:{node.lineno}: a fixed sleep; poll a condition until a deadline")
            if call == "print" and is_product and not module.startswith(PRINTING_PACKAGES):
                found.append(f"{module}:{node.lineno}: print is banned outside the command line; use logging")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            call = ast.unparse(node.value.func)
            if call.endswith(("create_task", "ensure_future")) and not re.match(
                r"(tg|group|\w*group)\.", call
            ):
                found.append(f"{module}:{node.lineno}: a task without a reference; keep it and await it")
        elif isinstance(node, ast.ExceptHandler):
            broad = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            if broad and all(isinstance(statement, ast.Pass) for statement in node.body):
                found.append(f"{module}:{node.lineno}: swallows everything; name the error, or handle it")
    for number, line in enumerate(source.splitlines(), 1):
        if leftover_marker().search(line):
            found.append(f"{module}:{number}: leftover marker; do it, or write it down where it is planned")
    return found


def exemption_complaints(source: str, module: str) -> list[str]:
    """A lint or type exemption names its rule and says why, on the line."""
    rules = r"(:\s*[A-Z]+\d+(\s*,\s*[A-Z]+\d+)*|\[[\w, -]+\])"
    exemption = re.compile(rf"#\s*(noqa|type:\s*ignore)(?P<rules>{rules})?(?P<reason>.*)")
    found = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        said = exemption.search(token.string) if token.type == tokenize.COMMENT else None
        if said and not (said["rules"] and re.search(r"\w{3}", said["reason"])):
            where = f"{module}:{token.start[0]}"
            found.append(f"{where}: an exemption names its rule and gives its reason on the line")
    return found


# --- documents and text ---


def forbidden_text() -> re.Pattern[str]:
    """Machine paths and package-registry hosts, which a checkout must not know."""
    hosts = ("py" + "pi.org", "python" + "hosted.org", "proxy.go" + "lang.org", "registry.np" + "mjs.org")
    paths = (r"/wo" + "rk/", r"/op" + "t/", r"/ho" + r"me/\w", r"/ro" + "ot/", r"/Us" + r"ers/\w")
    return re.compile(r"(?<![\w.])(" + "|".join(paths) + ")|" + "|".join(re.escape(host) for host in hosts))


def text_complaints(text: str, name: str) -> list[str]:
    return [
        f"{name}:{number}: names a machine path or a package registry"
        for number, line in enumerate(text.splitlines(), 1)
        if forbidden_text().search(line)
    ]


def without_code(text: str) -> str:
    return re.sub(r"^(```|~~~).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)


def heading_complaints(text: str, name: str) -> list[str]:
    count = len(re.findall(r"^# \S", without_code(text), flags=re.MULTILINE))
    return [] if count == 1 else [f"{name}: {count} first-level headings, exactly one is wanted"]


def link_complaints(text: str, name: str, folder: Path) -> list[str]:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", without_code(text))
    relative = [target for target in targets if not re.match(r"[a-z]+:", target)]
    return [f"{name}: dead link {target}" for target in relative if not (folder / target).exists()]


def text_files() -> Iterator[Path]:
    endings = {".py", ".pyi", ".md", ".toml", ".proto", ".lock", ".yaml", ".yml", ".sh", ".sql", ".txt", ""}
    for path in sorted(ROOT.rglob("*")):
        inside = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") and part not in (".ci", ".gitignore") for part in inside)
        if (
            not hidden
            and not SKIPPED_FOLDERS.intersection(inside)
            and path.is_file()
            and path.suffix in endings
        ):
            yield path


# --- entry points ---


def entry_point_complaints(module: types.ModuleType) -> list[str]:
    """`__all__` equals what is importable: every name loads, and nothing else is public."""
    exported = list(module.__all__)
    found = [
        f"{module.__name__}: {name} is in __all__ twice"
        for name in {n for n in exported if exported.count(n) > 1}
    ]
    found += [
        f"{module.__name__}: {name} is in __all__ but does not load"
        for name in exported
        if not hasattr(module, name)
    ]
    for name, value in vars(module).items():
        is_own = not name.startswith("_") and not isinstance(value, types.ModuleType)
        if is_own and name not in exported and name not in ("annotations", "TYPE_CHECKING"):
            found.append(f"{module.__name__}: {name} is importable but not in __all__")
    return found


# --- words ---


def word_complaints(text: str, name: str) -> list[str]:
    """Refused words of the file's name and of its lines; see tests/vocabulary.py."""
    lines = enumerate([Path(name).name, *text.splitlines()])
    return [
        f"{name}:{number}: `{word}`; say: {vocabulary.instead_of(word)}"
        for number, line in lines
        for word in vocabulary.refused_in(name, line)
    ]


def worded_files() -> Iterator[tuple[Path, str]]:
    """Every file of text that people wrote, with its name below the root."""
    for path in [
        *text_files(),
        *sorted(ROOT.rglob("tests/conformance/**/*.[gj][os]")),
        *sorted((ROOT / "kvstore").rglob("*.html")),
    ]:
        name = path.relative_to(ROOT).as_posix()
        if not GENERATED.search(name) and name not in (
            "tests/vocabulary.py",
            "LICENSE",
            "requirements-dev.lock",
        ):
            yield path, name


# --- the rules, applied ---


def over(check: Callable[[str, str], list[str]], *folders: str) -> list[str]:
    return [line for path in python_files(*folders) for line in check(path.read_text(), module_name(path))]


def show(complaints: list[str]) -> str:
    return "\n" + "\n".join(complaints)


def test_layers() -> None:
    found = []
    for path in python_files(*PRODUCT_FOLDERS):
        is_package = path.name == "__init__.py"
        found += layer_complaints(path.read_text(), module_name(path), is_package=is_package)
    assert not found, show(found)


def test_pure_packages_are_pure() -> None:
    folders = [package.replace(".", "/") for package in PURE_PACKAGES]
    found = over(purity_complaints, *folders)
    found += purity_complaints((ROOT / "kvstore/errors.py").read_text(), "kvstore.errors")
    assert not found, show(found)


def loaded_by(package: str) -> list[str]:
    """The heavy modules that importing a package loads in a fresh interpreter."""
    program = f"import sys; before = set(sys.modules); import {package}; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {program}"],
                          capture_output=True, text=True, check=True, cwd=ROOT)  # fmt: skip
    return [name for name in HEAVY_MODULES if name in done.stdout.split()]


@pytest.mark.parametrize("package", PURE_PACKAGES)
def test_pure_packages_load_nothing_heavy(package: str) -> None:
    assert loaded_by(package) == []


def test_no_import_cycles() -> None:
    paths = {module_name(path): path for path in python_files(*PRODUCT_FOLDERS)}
    packages = {module for module, path in paths.items() if path.name == "__init__.py"}
    found = cycles(import_graph({module: path.read_text() for module, path in paths.items()}, packages))
    assert not found, show(found)


def test_lengths() -> None:
    found = over(length_complaints, *SOURCE_FOLDERS)
    assert not found, show(found)


def test_bans() -> None:
    found = over(ban_complaints, *SOURCE_FOLDERS)
    assert not found, show(found)


def test_exemptions_have_reasons() -> None:
    found = over(exemption_complaints, *SOURCE_FOLDERS)
    assert not found, show(found)


def test_no_machine_paths_or_registry_hosts() -> None:
    found = [
        line
        for path in text_files()
        for line in text_complaints(path.read_text(), str(path.relative_to(ROOT)))
    ]
    assert not found, show(found)


def test_words() -> None:
    found = [line for path, name in worded_files() for line in word_complaints(path.read_text(), name)]
    assert not found, show(found)


def test_word_exemptions_are_used() -> None:
    lines = [
        (name, line) for path, name in worded_files() for line in [path.name, *path.read_text().splitlines()]
    ]
    unused = [
        one
        for one in vocabulary.EXEMPTIONS
        if not any(
            one.word in line.lower() and vocabulary.covers(one, name, line, one.word) for name, line in lines
        )
    ]
    assert not unused, show([f"{one.word}: {one.reason}" for one in unused])


def test_documents() -> None:
    found = []
    documents = [path for path in text_files() if path.suffix == ".md"]
    assert documents
    for path in documents:
        name = str(path.relative_to(ROOT))
        found += heading_complaints(path.read_text(), name) + link_complaints(
            path.read_text(), name, path.parent
        )
    assert not found, show(found)


ENTRY_POINTS = [
    module_name(path)
    for path in python_files(*PRODUCT_FOLDERS)
    if path.name == "__init__.py" and "__all__" in path.read_text()
]


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_entry_points_export_what_is_importable(entry_point: str) -> None:
    found = entry_point_complaints(importlib.import_module(entry_point))
    assert not found, show(found)


def test_generated_code_is_fresh() -> None:
    tool = ROOT / "tools" / "genproto.py"
    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- negative controls: each rule flags its bad snippet and leaves the good one alone ---


def long_function(lines: int) -> str:
    return "def f():\n" + '    """Says.\n\n    More.\n    """\n' + "    x = 1\n" * (lines - 1)


def constructor(arguments: str) -> str:
    return f"def __init__({', '.join(('self', *arguments))}): ..."


Control = tuple[Callable[[str, str], list[str]], str, str, str]
"""A rule, the module the snippet pretends to be, a bad snippet, a good one (empty: none)."""

TYPES_ONLY = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    "
WALK = "def f(a: set[int]):\n    b = {made}\n    for x in {walked}: pass"


def links(text: str, name: str) -> list[str]:
    return link_complaints(text, name, ROOT)


LAYER_CONTROLS: list[Control] = [
    (layer_complaints, "raft.node.loop", "import kvstore.errors", "import raft.core.types"),
    (layer_complaints, "raft.core.log", "from raft.storage import protocol", "from raft.core import types"),
    (layer_complaints, "raft.storage.wal", "from ..transport import protocol", "from ..core import types"),
    (layer_complaints, "kvstore.server.x", "def f():\n    from kvstore.wire import y", "import raft.node"),
    (layer_complaints, "kvstore.rpc.kv_service", "from kvstore import app", "from kvstore import wire"),
    (layer_complaints, "kvstore.attic.old", "x = 1", ""),
    (purity_complaints, "raft.core.log", "import time", TYPES_ONLY + "import random"),
    (purity_complaints, "raft.core.log", "from os import path", "from bisect import insort"),
    (purity_complaints, "m", WALK.format(made="1", walked="a"), WALK.format(made="1", walked="sorted(a)")),
    (purity_complaints, "m", WALK.format(made="set(a)", walked="b"), WALK.format(made="dict(a)", walked="b")),
    (
        purity_complaints,
        "m",
        WALK.format(made="[x for x in a]", walked="b"),
        WALK.format(made="any(x for x in a)", walked="b"),
    ),
]
LENGTH_CONTROLS: list[Control] = [
    (length_complaints, "m", long_function(FUNCTION_LINES_MAX + 1), long_function(FUNCTION_LINES_MAX)),
    (length_complaints, "m", "x = 1\n" * (FILE_LINES_MAX + 1), "x = 1\n" * FILE_LINES_MAX),
    (length_complaints, "raft.node.node", "x = 1\n" * 351, "x = 1\n" * 350),
    (length_complaints, "raft.node.part", "x = 1\n" * 401, "x = 1\n" * 400),
    (length_complaints, "raft.node.part", constructor("abcdefg"), constructor("abcdef")),
    (length_complaints, "raft.node.part", constructor("a*bcdefg"), constructor("*abcdef")),
]
BAN_CONTROLS: list[Control] = [
    *[(ban_complaints, "raft.m", f"{call}()", call.replace(".", "_") + "()") for call in CALL_BANS],
    (ban_complaints, "raft.m", "time.sleep(1)", "while not done(): time.sleep(0.01)"),
    (ban_complaints, "raft.m", "print(1)", "log.info(1)"),
    (ban_complaints, "raft.m", "asyncio.create_task(f())", "task = asyncio.create_task(f())"),
    (ban_complaints, "raft.m", "loop.create_task(f())", "group.create_task(f())"),
    (ban_complaints, "raft.m", "try: f()\nexcept Exception: pass", "try: f()\nexcept OSError: pass"),
    (ban_complaints, "raft.m", "try: f()\nexcept: pass", "try: f()\nexcept Exception: raise"),
    (ban_complaints, "raft.m", "x = 1  # TO" + "DO later", "x = 1  # done"),
    (exemption_complaints, "m", "x = 1  # no" + "qa", "x = 1  # no" + "qa: S101 -- asserts are wanted"),
    (exemption_complaints, "m", "x = 1  # no" + "qa: S101", "x = 1  # type: ig" + "nore[misc]  # no types"),
]
TEXT_CONTROLS: list[Control] = [
    (text_complaints, "m", "cd /wo" + "rk/main", "the work/main folder"),
    (text_complaints, "m", "https://py" + "pi.org/simple", "the package index"),
    (word_complaints, "m", "the im" + "age is sent", "the snapshot is sent"),
    (word_complaints, "m", "class Hel" + "loFrame: pass", "class HandshakeFrame: pass"),
    (word_complaints, "m", "_on_" + "boot" + "_id = 1", "_on_incarnation = 1"),
    (word_complaints, "raft/im" + "age_store.py", "", ""),
    (heading_complaints, "m", "# One\n\n# Two\n", "# One\n\n```\n# code\n```\n## Two\n"),
    (heading_complaints, "m", "## Two\n", "# One\n"),
    (links, "m", "[a](no-such.md)", "[a](pyproject.toml) [b](https://example.org)"),
]
CONTROLS = [*LAYER_CONTROLS, *LENGTH_CONTROLS, *BAN_CONTROLS, *TEXT_CONTROLS]


@pytest.mark.parametrize(("check", "module", "bad", "good"), CONTROLS)
def test_each_rule_bites(check: Callable[[str, str], list[str]], module: str, bad: str, good: str) -> None:
    assert check(bad, module), "the bad snippet passed"
    if good:
        assert check(good, module) == []


def test_cycles_are_found() -> None:
    bad = {"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset({"a"})}
    assert cycles(bad) == ["a -> b -> c -> a"]
    assert cycles({"a": frozenset({"b"}), "b": frozenset({"c"}), "c": frozenset()}) == []


@pytest.mark.parametrize(
    "back", ["import m.a", TYPES_ONLY + "from m.a import A", "def f():\n    from m import a"]
)
def test_cycles_of_types_and_functions_are_found(back: str) -> None:
    assert cycles(import_graph({"m.a": "from m.b import B", "m.b": back})) == ["m.a -> m.b -> m.a"]
    for package in LATE_CYCLES_ALLOWED:
        late = back.replace("m.a", f"{package}.a").replace("from m import", f"from {package} import")
        found = cycles(import_graph({f"{package}.a": f"import {package}.b", f"{package}.b": late}))
        assert bool(found) is back.startswith("import"), "loaded on import"


def test_heavy_modules_are_seen() -> None:
    assert "asyncio" in loaded_by("asyncio")


def test_entry_points_are_compared_with_their_names() -> None:
    module = types.ModuleType("entry_point")
    module.__dict__.update(__all__=["a", "b"], a=1, c=2, _d=3)
    assert entry_point_complaints(module) == [
        "entry_point: b is in __all__ but does not load",
        "entry_point: c is importable but not in __all__",
    ]
    module.__dict__.update(__all__=["a", "c"])
    assert entry_point_complaints(module) == []
