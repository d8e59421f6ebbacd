"""What code may do: run no foreign code, define only at import, keep heavy libraries in one place.

A rule is a pure function from sources (path → text) to complaints. Each is asked about the real
project, about small offences that it must catch, and about harmless look-alikes that it must pass.
"""

import ast
import sys
from pathlib import PurePosixPath

import pytest
from sources import (
    PRODUCT,
    Rule,
    Sources,
    at_import,
    dotted,
    imports,
    of_product,
    origins,
    project,
    within,
)

HOMES: dict[str, str | tuple[str, ...]] = {
    "botocore": "capture/store/s3",
    "dattri_llm": "analysis/influence/baselines/adamw_influence.py",
    "deepspeed": "capture/engine/deepspeed",
    "diptest": "analysis/transitions/runs/stability.py",
    "fsspec": "capture/store/filesystem.py",
    "hmmlearn": "analysis/transitions/timing/states.py",
    "kronfluence": "analysis/influence/baselines/ekfac.py",
    "lightning": "ontogeny/trainers/",
    "omegaconf": "capture/config/reading.py",
    "pytorch_lightning": "ontogeny/trainers/",
    "ray": "cluster/on_ray/",
    "rich": "cluster/",
    "ruptures": "analysis/transitions/shape/segments.py",
    "shapiq": "analysis/trajectory/metrics/interactions.py",
    "s3fs": "tests/",  # for pandas and DuckDB; the store itself uses botocore
    # clusters of neurons and positions; probes; mixtures of outcomes
    "sklearn": (
        "analysis/neurons/",
        "analysis/trajectory/metrics/concepts.py",
        "analysis/transitions/quanta/clusters.py",
        "analysis/transitions/runs/stability.py",
    ),
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
    heavy_libraries_have_one_home,
    plotting_stays_in_one_file_of_analysis,
    nothing_read_can_run_code,
    file_names_say_what_is_inside,
    importing_only_defines,
]

OFFENCES: list[tuple[Rule, Sources]] = [
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
    (
        heavy_libraries_have_one_home,
        {"capture/config/reading.py": "from omegaconf import OmegaConf"},
    ),
    (heavy_libraries_have_one_home, {"cluster/on_ray/x.py": "import ray, richer"}),
    (plotting_stays_in_one_file_of_analysis, {"analysis/report/x.py": "import matplotlib, plotly"}),
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
        "capture/a.py: imports ray, whose home is cluster/on_ray/"
    ]


def test_the_project_is_found() -> None:
    assert {f"{folder}/__init__.py" for folder in PRODUCT} <= project().keys()
