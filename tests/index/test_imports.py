import ast
import pathlib

import pytest

import tf_dynidx

ROOT = pathlib.Path(tf_dynidx.__file__).parent
FILES = sorted([*ROOT.glob("ops/*.py"), *ROOT.glob("index/*.py")])
ALLOWED = {
    *("contextlib", "functools", "math", "typing"),
    *("numpy", "tensorflow", "tqdm"),
    *("tf_dynidx.ops", "tf_dynidx.index"),
}


def imported_modules(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_ops_and_index_import_nothing_above_them_and_no_keras(path):
    tree = ast.parse(path.read_text("utf-8"))
    for module in imported_modules(tree):
        allowed = any(module == name or module.startswith(name + ".") for name in ALLOWED)
        assert allowed and "keras" not in module, module
        if path.parent.name == "ops":
            assert not module.startswith("tf_dynidx.index"), module
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.Attribute) and node.attr == "keras"), node.lineno


def test_files_are_found():
    assert {path.name for path in FILES} >= {"masses.py", "tree.py", "dynamic_index.py"}
