"""The rules of the design that a machine can check, by walking the syntax trees."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import crystalctl

ROOT = Path(crystalctl.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

CORE = ("diffusion", "networks", "models", "training", "crystal")
CORE_FILES = {"checkpoint.py", "config.py", "errors.py"} | {
    f"data/{name}.py" for name in ("datasets", "loading", "statistics")
}
CORE_EXCEPT = {"crystal/convert.py"}
CORE_MAY_IMPORT = {"torch", "numpy", "safetensors", "crystalctl"}
LAZY = {"networks/kernels.py": {"triton"}}
"""What a module may import besides, as nothing imports it before it is used."""

ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "crystal": {"errors"},
    "symmetry": {"errors", "crystal"},
    "data": {"errors", "crystal", "symmetry"},
    "diffusion": {"errors", "crystal"},
    "networks": {"errors", "crystal"},
    "models": {"errors", "config", "crystal", "symmetry", "data", "diffusion", "networks"},
    "checkpoint": {"errors", "config", "crystal", "data", "models"},
    "training": {
        "errors",
        "config",
        "crystal",
        "symmetry",
        "data",
        "diffusion",
        "models",
        "checkpoint",
        "retrieval",
    },
    "chosen": {"symmetry"},
    "starts": {"symmetry"},
    "templating": {"errors", "crystal", "symmetry", "data", "chosen"},
    "retrieval": {"errors", "crystal", "symmetry", "data", "chosen", "starts", "io"},
    "precedents": {"symmetry", "chosen", "retrieval"},
    "alignment": {"crystal", "symmetry", "diffusion"},
    "prototypes": {"crystal", "symmetry", "diffusion", "alignment", "starts", "retrieval"},
    "proposing": {"crystal", "symmetry", "chosen", "templating", "retrieval", "checkpoint"},
    "refusals": {"errors", "crystal", "symmetry", "chosen", "templating"},
    "units": {"errors", "crystal", "data"},
    "planning": {
        "errors",
        "crystal",
        "symmetry",
        "data",
        "units",
        "chosen",
        "templating",
        "refusals",
    },
    "tiles": {"planning"},
    "drawn": {"errors", "crystal", "symmetry", "diffusion", "planning"},
    "cluster": {"errors"},
    "parallel": {
        "errors",
        "crystal",
        "symmetry",
        "planning",
        "models",
        "checkpoint",
        "drawn",
        "cluster",
    },
    "analysis": {"errors", "crystal", "symmetry", "data", "planning"},
    "evaluation": {"errors", "crystal", "symmetry", "data", "analysis"},
    "io": {"errors", "crystal", "symmetry", "data", "analysis", "evaluation"},
    "known": {"errors", "symmetry", "analysis", "io", "checkpoint"},
}
"""Part -> parts it may import. Those not named (api, cli, planning, ...) stand above all."""
ABOVE = {
    "after",
    "api",
    "cli",
    "comparisons",
    "composing",
    "energies",
    "evaluating",
    "execution",
    "gathering",
    "goals",
    "likelihoods",
    "ordering",
    "overview",
    "parts",
    "relaxing",
    "sampling",
    "selection",
    "__init__",
    "__main__",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, module) of every import at any depth, those for type checking included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            if module == "crystalctl":
                yield from ((node.lineno, f"crystalctl.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def each_tree() -> Iterator[tuple[Path, ast.Module]]:
    for path in MODULES:
        yield path, ast.parse(path.read_text(encoding="utf-8"), str(path))


def report(violations: list[str]) -> None:
    assert not violations, "\n" + "\n".join(violations)


def test_imports_point_one_way():
    wrong = []
    for path, tree in each_tree():
        part = part_of(path)
        for line, module in imports(tree):
            root, *rest = module.split(".")
            if root != "crystalctl" or not rest:
                continue
            used = rest[0]
            if used == part or (used not in ALLOWED and used not in ABOVE):
                continue
            if part in ALLOWED and used not in ALLOWED[part]:
                wrong.append(f"{name_of(path)}:{line} imports {module}")
    report(wrong)


def test_every_part_has_its_place():
    report([p for p in {part_of(path) for path in MODULES} if p not in {*ALLOWED, *ABOVE}])


def test_the_core_imports_three_packages_only():
    wrong = []
    for path, tree in each_tree():
        name = name_of(path)
        if name in CORE_EXCEPT or not (part_of(path) in CORE or name in CORE_FILES):
            continue
        for line, module in imports(tree):
            root = module.split(".")[0]
            allowed = CORE_MAY_IMPORT | LAZY.get(name, set())
            if root not in allowed and root not in sys.stdlib_module_names:
                wrong.append(f"{name}:{line} imports {module}")
    report(wrong)


def test_what_only_some_machines_have_is_imported_where_it_is_used():
    wrong = []
    lazy = {f"crystalctl.{name.removesuffix('.py').replace('/', '.')}" for name in LAZY}
    for path, tree in each_tree():
        found = set()
        for node in tree.body:
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        wrong += [f"{name_of(path)} imports {name}" for name in found & lazy]
    report(wrong)


def test_one_place_picks_devices():
    wrong = []
    for path, tree in each_tree():
        if name_of(path) == "models/device.py":
            continue
        for node in ast.walk(tree):
            literal = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if literal and (node.value == "cuda" or node.value.startswith("cuda:")):
                wrong.append(f"{name_of(path)}:{node.lineno} names the device {node.value!r}")
    report(wrong)


def test_nothing_is_unpickled_or_evaluated():
    wrong = []
    forbidden = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "marshal", "shelve"}
    for path, tree in each_tree():
        wrong += [
            f"{name_of(path)}:{line} imports {module}"
            for line, module in imports(tree)
            if module.split(".")[0] in forbidden
        ]
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            call = ast.unparse(node.func)
            if call in {"torch.load", "torch.save", "np.load", "numpy.load", "eval", "exec"}:
                wrong.append(f"{name_of(path)}:{node.lineno} calls {call}")
    report(wrong)


def test_sizes():
    wrong = []
    for path, tree in each_tree():
        name, lines = name_of(path), path.read_text(encoding="utf-8").splitlines()
        if len(lines) > 400:
            wrong.append(f"{name}: {len(lines)} lines, at most 400")
        wrong += [
            f"{name}:{k}: {len(line)} columns, at most 100"
            for k, line in enumerate(lines, start=1)
            if len(line) > 100
        ]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                limit = 200 if isinstance(node, ast.ClassDef) else 60
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > limit:
                    wrong.append(f"{name}:{node.lineno} {node.name}: {size} lines, at most {limit}")
    report(wrong)


def test_public_functions_take_few_positional_arguments():
    """The aim is three, four pass; beyond that they are keyword-only."""
    wrong = []
    for path, tree in each_tree():
        if part_of(path) in {"diffusion", "networks"}:
            continue  # mathematics: (x, out, t, s, layout, noise) reads as the formula
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith(("_", "forward")):
                continue
            names = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            names = [n for n in names if n not in {"self", "cls"}]
            if len(names) > 4 and part_of(path) != "cli":
                wrong.append(f"{name_of(path)}:{node.lineno} {node.name}({', '.join(names)})")
    report(wrong)


def test_library_code_does_not_print():
    wrong = []
    for path, tree in each_tree():
        is_script = any("__name__" in ast.unparse(node) for node in tree.body)
        if part_of(path) in {"cli", "__main__"} or is_script:
            continue
        wrong += [
            f"{name_of(path)}:{node.lineno} prints"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
        ]
    report(wrong)
