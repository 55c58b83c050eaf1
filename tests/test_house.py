"""Rules of the house: which way imports go, what ships with checkpoints, how long a file may be."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "collab_hf"
MOST_LINES = 300

# Rooms from the ground up: each imports from those before it, and from the files at the root.
FLOORS = [
    "modeling",
    "tensors",
    "host",
    "calibration",
    "parts",
    "recovery",
    "planning",
    "checkpoint",
    "registration",
    "hub",
    "measure",
    "surgery",
    "layers",
    "cli",
]


def modules() -> Iterator[tuple[str, Path]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(file.relative_to(REPOSITORY).with_suffix("").parts), file


def imported(name: str, file: Path) -> Iterator[tuple[str, bool]]:
    """Modules of the package that a file imports, and whether it does so when it is loaded itself."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    lazy = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        for inner in ast.walk(node)
    }
    parts = name.split(".")
    here = parts if file.name == "__init__.py" else parts[:-1]
    here = here[:-1] if file.name == "__init__.py" else here
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = (parts[:-1])[: len(parts[:-1]) - node.level + 1]
                base = ".".join([*up, *([node.module] if node.module else [])])
            if base.split(".")[0] == "collab_hf":
                yield base, id(node) not in lazy


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else None


def test_every_folder_has_a_floor():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and not path.name.startswith("__")}
    assert folders == set(FLOORS)


def test_imports_go_one_way():
    wrong = []
    for name, file in modules():
        here = room(name)
        if here is None:
            continue
        for target, at_once in imported(name, file):
            there = room(target)
            if there is None or not at_once:
                continue
            if FLOORS.index(there) > FLOORS.index(here):
                wrong.append(f"{name} imports {target}")
    assert not wrong


def test_files_import_each_other_in_no_circle_but_one():
    """Transformers ships the files that a file imports, so config and model need each other."""
    names = {name for name, _ in modules()}
    arrows = {}
    for name, file in modules():
        targets = {target for target, _ in imported(name, file)}
        arrows[name] = {t for t in targets if t in names and t != name and not t.endswith("__init__")}
    allowed = {"collab_hf.modeling.configuration_collab", "collab_hf.modeling.modeling_collab"}
    assert circles(arrows) == [allowed]
    assert circles({**arrows, "collab_hf.files": {"collab_hf.config"}}) != [allowed]  # negative control


def circles(arrows: dict[str, set[str]]) -> list[set[str]]:
    """Sets of more than one file that reach each other."""
    reached = {}
    for name in arrows:
        seen, todo = set(), [name]
        while todo:
            for target in arrows.get(todo.pop(), ()):
                if target not in seen:
                    seen.add(target)
                    todo.append(target)
        reached[name] = seen
    found = []
    for name, seen in reached.items():
        circle = {other for other in seen if name in reached.get(other, ())}
        if name in seen and circle not in found:
            found.append(circle)
    return found


def test_shipped_files_import_torch_transformers_and_siblings_alone():
    allowed = {"torch", "transformers", *sys.stdlib_module_names}
    for file in sorted((PACKAGE / "modeling").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file.name
            elif isinstance(node, ast.ImportFrom):
                if node.level:
                    assert node.level == 1, f"{file.name} imports from above"
                else:
                    assert (node.module or "").split(".")[0] in allowed, file.name


def test_tensors_know_nothing_of_transformers():
    for file in (PACKAGE / "tensors").glob("*.py"):
        assert not re.search(r"^\s*(from|import) transformers", file.read_text(encoding="utf-8"), re.M), (
            file.name
        )


def test_no_file_is_long():
    long = {
        file.name: count
        for _, file in modules()
        if (count := len(file.read_text().splitlines())) > MOST_LINES
    }
    assert not long


def test_every_command_is_in_the_reference():
    from collab_hf.cli import app

    text = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    names += [
        f"{group.name} {command.callback.__name__}"
        for group in app.registered_groups
        for command in group.typer_instance.registered_commands
    ]
    assert [name for name in names if f"collab-hf {name}" not in text] == []


@pytest.mark.parametrize("name", ["method"])
def test_forms_are_asked_not_compared(name: str):
    """Which decomposition a layer has is for forms, methods and solvers to know."""
    pattern = re.compile(rf"\.{name} (==|!=|in|not in) ")
    allowed = {"config.py", "planner.py", "candidates.py", "plan.py"}  # `auto` is no form; an unknown name
    found = [file.name for _, file in modules() if pattern.search(file.read_text(encoding="utf-8"))]
    assert set(found) <= allowed
