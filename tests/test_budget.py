"""The line budget: what is longer than this is two things, and is read by nobody."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE, CLASS, FUNCTION, ARGUMENTS = 350, 220, 60, 10

Function = ast.FunctionDef | ast.AsyncFunctionDef


def sources() -> list[Path]:
    return sorted([*(ROOT / "t2i").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")])


def lines(node: ast.AST) -> int:
    return node.end_lineno - node.lineno + 1  # type: ignore[attr-defined]


def classes() -> dict[str, tuple[int, list[str]]]:
    """Lines and bases of every class of the project; of two classes of one name the longer counts."""
    found: dict[str, tuple[int, list[str]]] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and lines(node) > found.get(node.name, (0, []))[0]:
                found[node.name] = lines(node), [ast.unparse(base).rpartition(".")[2] for base in node.bases]
    return found


def with_bases(name: str, known: dict[str, tuple[int, list[str]]]) -> int:
    """Lines of a class and of all those of the project that it is made of."""
    seen, waiting = set(), [name]
    while waiting:
        if (each := waiting.pop()) in known and each not in seen:
            seen.add(each)
            waiting += known[each][1]
    return sum(known[each][0] for each in seen)


def arguments(function: Function) -> int:
    a = function.args
    given = [x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x is not None]
    return len([name for name in given if name not in ("self", "cls")])


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_keeps_the_budget(path: Path) -> None:
    text = path.read_text()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, Function)]
    assert len(text.splitlines()) <= FILE
    assert {f.name: lines(f) for f in functions if lines(f) > FUNCTION} == {}
    if path.parent.name != "cli":  # a command's arguments are its options, which its users count
        assert {f.name: arguments(f) for f in functions if arguments(f) > ARGUMENTS} == {}


def test_a_class_keeps_the_budget_with_all_its_bases() -> None:
    known = classes()
    sizes = {name: with_bases(name, known) for name in known}
    assert {name: size for name, size in sizes.items() if size > CLASS} == {}


def test_the_budget_counts() -> None:
    known = {"A": (100, ["B", "nn.Module"]), "B": (90, ["C"]), "C": (40, [])}
    assert with_bases("A", known) == 230
    function = ast.parse("def f(self, a, /, b, *c, d, **e): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert arguments(function) == 5
