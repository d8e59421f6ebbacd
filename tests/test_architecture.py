"""The shape of the code, as rules that can fail.

A rule is a pure function from sources (path → text) to complaints. Each is asked about the real
project, about small offences that it must catch, and about harmless look-alikes that it must pass.
Imports count wherever they stand: at the top, inside a function, under ``TYPE_CHECKING``.
"""

import ast
import sys
from collections.abc import Callable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest

Sources = Mapping[str, str]
Rule = Callable[[Sources], list[str]]

ROOT = Path(__file__).parents[1]
PRODUCT = ("capture", "analysis", "cluster")
FOLDERS = (*PRODUCT, "benchmarks", "tests")

MAY_NOT_IMPORT = {
    "capture": {"analysis", "cluster", "benchmarks", "tests"},
    "analysis": {
        "cluster",
        "benchmarks",
        "tests",
        "capture.training",
        "capture.engine",
        "capture.custom_loop",
    },
    "cluster": {"benchmarks", "tests"},
}
HOMES = {
    "botocore": "capture/store/s3",
    "deepspeed": "capture/engine/deepspeed",
    "fsspec": "capture/store/filesystem.py",
    "omegaconf": "capture/config/reading.py",
    "ray": "cluster/",
    "rich": "cluster/",
    "s3fs": "tests/",  # brought along for pandas and DuckDB; our own way to S3 is botocore
    "sklearn": "analysis/neurons/clustering.py",
    "tokenizers": "capture/corpus/tokenizer.py",
    "transformers": "capture/models/",
}
PLOTTING = {"matplotlib", "plotly", "seaborn"}
RUNS_FOREIGN_CODE = {
    *("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("eval", "exec", "torch.load", "torch.save", "pandas.read_pickle"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all", "yaml.Loader"),
    *("yaml.FullLoader", "yaml.UnsafeLoader", "numpy.load", "numpy.fromfile", "pandas.eval"),
    *(
        "compile",
        "os.system",
        "runpy",
        "torch.jit",
        "torch.package",
        "torch.hub",
        "pandas.read_hdf",
    ),
    *("pyarrow.deserialize", "pyarrow.PyExtensionType", "pyarrow.register_extension_type"),
}
RUNS_COMMANDS = {"capture/format/run_yaml.py"}
"""What may start a process: git is asked for the commit when a run is made."""
SAYS_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}


def project() -> dict[str, str]:
    """Every Python file of ours, by its path from the root with forward slashes."""
    files = (file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py")))
    return {file.relative_to(ROOT).as_posix(): file.read_text("utf-8") for file in files}


def of_product(sources: Sources) -> Sources:
    return {path: text for path, text in sources.items() if path.split("/")[0] in PRODUCT}


# --- what a source says ---------------------------------------------------------------------------


def module_name(path: str) -> str:
    """capture/store.py → capture.store, capture/__init__.py → capture."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def within(name: str, parent: str) -> bool:
    return name == parent or name.startswith(f"{parent}.")


def absolute(node: ast.ImportFrom, path: str) -> str:
    """The module that a ``from … import`` names, its leading dots resolved."""
    if not node.level:
        return node.module or ""
    package = PurePosixPath(path).parts[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def imports(path: str, text: str) -> set[str]:
    """All that is imported, dotted; ``from a import b`` counts as a.b, for b may be a module."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                found |= {f"{absolute(node, path)}.{alias.name}" for alias in node.names}
            case ast.Call(
                func=ast.Attribute(attr=function) | ast.Name(id=function),
                args=[ast.Constant(value=str(name)), *_],
            ) if function in ("import_module", "__import__"):
                found.add(name)
    return found


def origins(tree: ast.Module) -> dict[str, str]:
    """Local name → what it was imported as: ``import numpy as np`` gives np → numpy."""
    names = {}
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                names |= {a.asname: a.name for a in node.names if a.asname}
            case ast.ImportFrom(module=str(module)):
                names |= {a.asname or a.name: f"{module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.expr, names: Mapping[str, str]) -> str:
    """``torch.load`` for that expression, whatever torch is called here; "" if it is no name."""
    match node:
        case ast.Name():
            return names.get(node.id, node.id)
        case ast.Attribute():
            parent = dotted(node.value, names)
            return parent and f"{parent}.{node.attr}"
    return ""


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The statements that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                continue
            case ast.If(test=ast.Compare(left=ast.Name(id="__name__"))):
                continue
            case ast.stmt():
                yield child
        yield from at_import(child)


# --- the rules ------------------------------------------------------------------------------------


def imports_point_one_way(sources: Sources) -> list[str]:
    return [
        f"{path}: imports {name}"
        for path, text in sources.items()
        for name in sorted(imports(path, text))
        for banned in MAY_NOT_IMPORT.get(path.split("/")[0], ())
        if within(name, banned)
    ]


def heavy_libraries_have_one_home(sources: Sources) -> list[str]:
    return [
        f"{path}: imports {library}, whose home is {home}"
        for path, text in of_product(sources).items()
        for library, home in HOMES.items()
        if any(within(name, library) for name in imports(path, text)) and not path.startswith(home)
    ]


def plotting_stays_in_one_file_of_analysis(sources: Sources) -> list[str]:
    plotters = [
        path
        for path, text in of_product(sources).items()
        if any(within(name, library) for name in imports(path, text) for library in PLOTTING)
    ]
    strays = [path for path in plotters if not path.startswith("analysis/")]
    crowd = plotters if len(plotters) > 1 else []
    return [f"{path}: plots" for path in sorted({*strays, *crowd})]


def modules_form_no_cycle(sources: Sources) -> list[str]:
    paths = {module_name(path): path for path in sources}
    graph = {
        module: {target for name in imports(path, sources[path]) if (target := owner(name, paths))}
        for module, path in paths.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" → ".join(reversed(error.args[1]))]
    return []


def owner(name: str, modules: Mapping[str, str]) -> str:
    """Our module that defines an imported name: capture.store.Store → capture.store."""
    parts = name.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((module for module in candidates if module in modules), "")


def nothing_read_can_run_code(sources: Sources) -> list[str]:
    complaints = []
    for path, text in of_product(sources).items():
        tree = ast.parse(text)
        names = origins(tree)
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
        used = {dotted(call.func, names) for call in calls} | imports(path, text)
        used |= {dotted(node, names) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        foreign = RUNS_FOREIGN_CODE | (set() if path in RUNS_COMMANDS else {"subprocess"})
        banned = {name for name in used if any(within(name, bad) for bad in foreign)}
        complaints += [f"{path}: uses {name}" for name in sorted(banned)]
    return complaints


def file_names_say_what_is_inside(sources: Sources) -> list[str]:
    complaints = []
    for path in sources:
        for part in PurePosixPath(path).with_suffix("").parts:
            if part in SAYS_NOTHING:
                complaints.append(f"{path}: {part!r} says nothing")
            elif part in sys.stdlib_module_names:
                complaints.append(f"{path}: {part!r} hides a standard module")
    return complaints


def importing_only_defines(sources: Sources) -> list[str]:
    """No bare calls at import, and no writing into other objects (``os.environ["X"] = …``)."""
    complaints = []
    for path, text in sources.items():
        if path.startswith("tests/"):  # pytest.importorskip stands at the top, by its design
            continue
        for node in at_import(ast.parse(text)):
            match node:
                case (
                    ast.Expr(value=ast.Call())
                    | ast.Assign(targets=[ast.Attribute() | ast.Subscript(), *_])
                    | ast.AugAssign(target=ast.Attribute() | ast.Subscript())
                ):
                    complaints.append(f"{path}:{node.lineno}: acts when imported")
    return complaints


# --- each rule holds, and can fail ----------------------------------------------------------------

RULES: list[Rule] = [
    imports_point_one_way,
    heavy_libraries_have_one_home,
    plotting_stays_in_one_file_of_analysis,
    modules_form_no_cycle,
    nothing_read_can_run_code,
    file_names_say_what_is_inside,
    importing_only_defines,
]

OFFENCES: list[tuple[Rule, Sources]] = [
    (imports_point_one_way, {"capture/x.py": "import analysis.run"}),
    (imports_point_one_way, {"capture/x.py": "def f():\n    from cluster import cli"}),
    (imports_point_one_way, {"analysis/x.py": "import cluster.local as local"}),
    (imports_point_one_way, {"analysis/x.py": "from capture import training"}),
    (imports_point_one_way, {"analysis/x.py": "from capture.engine import Engine"}),
    (imports_point_one_way, {"analysis/report/x.py": "from ...capture import training"}),
    (imports_point_one_way, {"analysis/x.py": "if TYPE_CHECKING:\n    import cluster"}),
    (imports_point_one_way, {"capture/x.py": "importlib.import_module('cluster.cli')"}),
    (imports_point_one_way, {"cluster/x.py": "from benchmarks import capture"}),
    (heavy_libraries_have_one_home, {"capture/training.py": "from omegaconf import OmegaConf"}),
    (heavy_libraries_have_one_home, {"analysis/run.py": "import fsspec.core"}),
    (heavy_libraries_have_one_home, {"capture/shards/x.py": "def f():\n    import s3fs"}),
    (heavy_libraries_have_one_home, {"cluster/x.py": "import deepspeed"}),
    (heavy_libraries_have_one_home, {"analysis/jobs.py": "import ray"}),
    (heavy_libraries_have_one_home, {"capture/training.py": "from rich import progress"}),
    (
        plotting_stays_in_one_file_of_analysis,
        {"analysis/a.py": "from matplotlib import pyplot", "analysis/b.py": "import plotly"},
    ),
    (plotting_stays_in_one_file_of_analysis, {"cluster/x.py": "import matplotlib.pyplot as plt"}),
    (
        modules_form_no_cycle,
        {"capture/a.py": "import capture.b", "capture/b.py": "def f():\n    import capture.a"},
    ),
    (
        modules_form_no_cycle,
        {"capture/a.py": "from . import b", "capture/b.py": "from .a import x"},
    ),
    (nothing_read_can_run_code, {"capture/x.py": "import pickle"}),
    (nothing_read_can_run_code, {"capture/x.py": "from shelve import open as look"}),
    (nothing_read_can_run_code, {"capture/x.py": "import torch as t\nt.load('x')"}),
    (nothing_read_can_run_code, {"capture/x.py": "from torch import load\nload('x')"}),
    (nothing_read_can_run_code, {"cluster/x.py": "eval('1')"}),
    (nothing_read_can_run_code, {"cluster/x.py": "def f():\n    exec('1')"}),
    (nothing_read_can_run_code, {"analysis/x.py": "import yaml\nyaml.load(open('x'))"}),
    (nothing_read_can_run_code, {"analysis/x.py": "import yaml\nyaml.parse(t, yaml.Loader)"}),
    (nothing_read_can_run_code, {"analysis/x.py": "import numpy as np\nnp.load('x')"}),
    (nothing_read_can_run_code, {"analysis/x.py": "import subprocess"}),
    (nothing_read_can_run_code, {"analysis/x.py": "read = __import__('pickle').loads"}),
    (file_names_say_what_is_inside, {"capture/utils.py": ""}),
    (file_names_say_what_is_inside, {"analysis/common/table.py": ""}),
    (file_names_say_what_is_inside, {"cluster/queue.py": ""}),
    (importing_only_defines, {"capture/x.py": "import logging\nlogging.basicConfig()"}),
    (importing_only_defines, {"capture/x.py": "class A:\n    print('hello')"}),
    (importing_only_defines, {"capture/x.py": "try:\n    start()\nfinally:\n    pass"}),
    (importing_only_defines, {"cluster/x.py": "import os\nos.environ['X'] = '1'"}),
    (importing_only_defines, {"benchmarks/x.py": "torch.backends.cudnn.benchmark = True"}),
]

HARMLESS: list[tuple[Rule, Sources]] = [
    (imports_point_one_way, {"analysis/x.py": "from capture import schema, training_plan"}),
    (imports_point_one_way, {"cluster/x.py": "import capture.training, analysis.jobs"}),
    (
        heavy_libraries_have_one_home,
        {"capture/config/reading.py": "from omegaconf import OmegaConf"},
    ),
    (heavy_libraries_have_one_home, {"cluster/report/x.py": "import ray, richer"}),
    (plotting_stays_in_one_file_of_analysis, {"analysis/report/x.py": "import matplotlib, plotly"}),
    (modules_form_no_cycle, {"capture/a.py": "from capture import b", "capture/b.py": ""}),
    (nothing_read_can_run_code, {"capture/x.py": "from safetensors.torch import load\nload(b'')"}),
    (nothing_read_can_run_code, {"capture/x.py": "model.eval()\nyaml.safe_load('')"}),
    (
        nothing_read_can_run_code,
        {"capture/format/run_yaml.py": "import subprocess, re\nre.compile('')"},
    ),
    (file_names_say_what_is_inside, {"capture/__init__.py": "", "capture/store.py": ""}),
    (importing_only_defines, {"cluster/__main__.py": "if __name__ == '__main__':\n    main()"}),
    (importing_only_defines, {"capture/x.py": "'''Doc.'''\nX = f()\ndef g():\n    print()"}),
]


def named(value: object) -> str | None:
    return value.__name__ if callable(value) else None


@pytest.mark.parametrize("rule", RULES, ids=named)
def test_the_project_keeps_the_rule(rule: Rule) -> None:
    assert rule(project()) == []


@pytest.mark.parametrize(("rule", "sources"), OFFENCES)
def test_the_rule_catches_an_offence(rule: Rule, sources: Sources) -> None:
    assert len(rule(sources)) >= 1


@pytest.mark.parametrize(("rule", "sources"), HARMLESS)
def test_the_rule_passes_a_look_alike(rule: Rule, sources: Sources) -> None:
    assert rule(sources) == []


def test_every_rule_has_an_offence_and_a_look_alike() -> None:
    assert {rule for rule, _ in OFFENCES} == {rule for rule, _ in HARMLESS} == set(RULES)


def test_a_complaint_names_the_file_and_the_cause() -> None:
    sources = {"capture/a.py": "import capture.b\nimport ray", "capture/b.py": "import capture.a"}
    assert heavy_libraries_have_one_home(sources) == [
        "capture/a.py: imports ray, whose home is cluster/"
    ]
    assert modules_form_no_cycle(sources) in (
        ["capture.a → capture.b → capture.a"],
        ["capture.b → capture.a → capture.b"],
    )


def test_the_project_is_found() -> None:
    assert {f"{folder}/__init__.py" for folder in PRODUCT} <= project().keys()
