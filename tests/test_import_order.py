"""Imports run one way: config <- models <- utils <- scripts, never upward, without a circle.

The rooms of utils/ have an order of their own.

The scorer stands alone, so that its folder can be copied out: it imports nothing of ours, and
only utils and scripts may use it.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCORER = "faster-pytorch-fid"
SCRIPTS = "scripts"  # every top-level *.py
MAY_IMPORT = {
    "config": {"config"},
    "models": {"config", "models"},
    "utils": {"config", "models", "utils", SCORER},
    SCORER: {SCORER},
    SCRIPTS: {"config", "models", "utils", SCORER, SCRIPTS},
}

ROOMS = (  # of utils/; each imports only rooms of lines above its own
    {"rng", "io"},
    {"device", "cli", "data", "pages", "scoring"},
    {"distributed", "weights"},
    {"inpainting"},
    {"training", "sweep", "app", "grading"},
    {"search"},
    {"report"},
)

SAME = {  # in every script, or in the scorer as in utils/, from which it must not import
    *("main", "build_parser", "run"),
    *("note", "limit", "check_limit", "user_path"),
}
Modules = dict[str, tuple[str, Path]]  # dotted name -> place, file


def modules_of(root: Path) -> Modules:
    """Our modules by the name under which they are imported; the scorer's from its own folder."""
    found: Modules = {}
    for place in MAY_IMPORT:
        files = root.glob("*.py") if place == SCRIPTS else (root / place).rglob("*.py")
        for file in files:
            base = root / SCORER if place == SCORER else root
            parts = file.relative_to(base).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = (place, file)
    return found


def imported_names(name: str, file: Path) -> set[str]:
    """Every dotted name that a file imports, wherever in the file, relative ones resolved."""
    names: set[str] = set()
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return names


def edges_of(modules: Modules) -> dict[str, set[str]]:
    """Which of our modules each of our modules imports."""
    edges = {name: imported_names(name, file) & set(modules) for name, (_, file) in modules.items()}
    # `from package import module` touches the package too, which is no circle of its own
    return {name: {n for n in to if n != name} for name, to in edges.items()}


def upward_imports(root: Path) -> list[str]:
    modules = modules_of(root)
    return sorted(
        f"{name} ({modules[name][0]}) imports {other} ({modules[other][0]})"
        for name, others in edges_of(modules).items()
        for other in others
        if modules[other][0] not in MAY_IMPORT[modules[name][0]]
    )


def floor_of(name: str) -> tuple[str, int]:
    """Room of a module of utils/ and the floor it stands on, from 0."""
    room = name.split(".")[1]
    return room, next(floor for floor, rooms in enumerate(ROOMS) if room in rooms)


def imports_between_rooms(root: Path) -> list[str]:
    """Imports that lead to a room on the same floor or on a higher one."""
    return sorted(
        f"{name} imports {other}"
        for name, others in edges_of(modules_of(root)).items()
        for other in others
        if name.startswith("utils.") and other.startswith("utils.")
        if floor_of(name)[0] != floor_of(other)[0] and floor_of(name)[1] <= floor_of(other)[1]
    )


def circle(root: Path) -> list[str]:
    """The modules that are left when those without imports are taken away again and again."""
    edges = edges_of(modules_of(root))
    while free := {name for name, others in edges.items() if not others}:
        edges = {name: others - free for name, others in edges.items() if name not in free}
    return sorted(edges)


def test_the_tree_is_seen_at_all():
    modules = modules_of(ROOT)
    assert {"config.schema", "models.maskgit", "utils.cli"} <= set(modules)
    assert "config.schema" in edges_of(modules)["models.decode"]


def test_no_module_imports_upward():
    assert upward_imports(ROOT) == []


def test_no_room_of_utils_imports_a_higher_one():
    assert imports_between_rooms(ROOT) == []


def test_no_modules_import_in_a_circle():
    assert circle(ROOT) == []


def test_no_two_modules_call_different_things_alike():
    places = defaultdict(list)
    for name, (_, file) in modules_of(ROOT).items():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
                places[node.name].append(name)
    assert {
        name: found for name, found in places.items() if len(found) > 1 and name not in SAME
    } == {}


def test_besides_scripts_one_place_makes_the_scorer_importable():
    touching = {
        name
        for name, (place, file) in modules_of(ROOT).items()
        if place != SCRIPTS and "sys.path" in file.read_text(encoding="utf-8")
    }
    assert touching == {"utils", "fid_score_gpu"}  # the latter is a script, too


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


LAWFUL = {
    "config/__init__.py": "",
    "config/schema.py": "import pydantic",
    "models/net.py": "from config.schema import Config",
    "utils/data.py": "import models.net",
    f"{SCORER}/fid/__init__.py": "",
    f"{SCORER}/fid/metrics.py": "import torch",
    f"{SCORER}/score.py": "from fid.metrics import distance",
    "train.py": "from utils import data",
}


def test_the_checker_passes_a_lawful_tree(tmp_path):
    write_tree(tmp_path, LAWFUL)
    assert upward_imports(tmp_path) == []
    assert circle(tmp_path) == []


@pytest.mark.parametrize(
    ("file", "text", "culprit"),
    [
        ("config/bad.py", "import models.net", "config.bad (config) imports models.net (models)"),
        ("config/bad.py", "from models import net", "config.bad (config) imports models.net"),
        ("models/bad.py", "def f():\n    from utils.data import x", "models.bad (models) imports"),
        ("models/bad.py", "from ..utils import data", "models.bad (models) imports utils.data"),
        ("utils/bad.py", "import train", "utils.bad (utils) imports train (scripts)"),
        ("models/bad.py", "from fid.metrics import d", f"imports fid.metrics ({SCORER})"),
        (f"{SCORER}/fid/bad.py", "import config.schema", f"fid.bad ({SCORER}) imports config"),
    ],
)
def test_the_checker_catches_an_upward_import(tmp_path, file, text, culprit):
    write_tree(tmp_path, LAWFUL | {file: text})
    found = upward_imports(tmp_path)
    assert found
    assert any(culprit in line for line in found)


def test_the_checker_catches_an_import_of_a_higher_room(tmp_path):
    write_tree(tmp_path, LAWFUL | {"utils/io/bad.py": "import utils.data", "utils/cli.py": ""})
    assert imports_between_rooms(tmp_path) == ["utils.io.bad imports utils.data"]


def test_the_checker_catches_a_circle(tmp_path):
    circular = {"models/a.py": "from models import b", "models/b.py": "from . import a"}
    write_tree(tmp_path, LAWFUL | circular)
    assert circle(tmp_path) == ["models.a", "models.b"]
