"""docs/RELIABILITY.md names tests that exist, and says of each whether it is slow."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "RELIABILITY.md").read_text()
NAMED = sorted(set(re.findall(r"(\*?)`(test_\w+)\.(test_\w+)`", PAGE)))


def test_every_fault_names_a_test() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "---" not in line]
    faults = [row for row in rows if not row.startswith("| fault ")]
    assert len(faults) > 30
    assert [row for row in faults if not re.search(r"`test_\w+\.test_\w+`", row)] == []


@pytest.mark.parametrize(("star", "module", "name"), NAMED)
def test_a_named_test_exists(star: str, module: str, name: str) -> None:
    [path] = (ROOT / "tests").rglob(f"{module}.py")
    functions = [
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
    ]
    assert len(functions) == 1
    marks = [ast.unparse(decorator) for decorator in functions[0].decorator_list]
    assert bool(star) == ("pytest.mark.slow" in marks)
