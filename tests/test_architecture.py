"""The layers of the code, as rules that can fail: what each package may import, and load.

A rule is a pure function from sources (path → text) to complaints. Each is asked about the real
project, about small offences that it must catch, and about harmless look-alikes that it must pass.
``docs/concepts/architecture.md`` shows ``LAYERS`` as a diagram, and is compared with it here.
"""

import ast
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from pathlib import PurePosixPath

import pytest
from checkout import ROOT
from sources import (
    PRODUCT,
    Rule,
    Sources,
    imports,
    imports_at_load,
    module_name,
    of_product,
    owner,
    project,
    within,
)

LAYERS = """
capture.redaction
capture.errors
capture.device  capture.process_group
capture.store  capture.gradients  capture.optim  capture.models
capture.shards  capture.shifts  capture.corpus  capture.parts
capture.interventions
capture.config
capture.format
capture.engine
capture.training
capture.replay  capture.custom_loop  capture.estimates  capture.maintenance
capture.unrolled  capture.retraining
analysis.levels  analysis.measures  analysis.run  analysis.report.drawing
analysis.jobs
analysis.lifetime  analysis.read_out
analysis.attribution  analysis.activations  analysis.behaviour  analysis.bigrams  analysis.report.pages
analysis.ablation  analysis.neurons  analysis.parameters  analysis.report
analysis.faithfulness  analysis.influence  analysis.spectra  analysis.trajectory
analysis.transitions
cluster.local  cluster.terminal
cluster.on_ray
cluster.options
cluster.commands
cluster.cli
ontogeny
"""  # noqa: E501
"""Lowest first. A package imports only what stands in a line above its own."""

RANKS = {
    package: rank
    for rank, line in enumerate(LAYERS.strip().splitlines())
    for package in line.split()
}
FACES = {"capture", "analysis", "cluster", "cluster.__main__"}
"""Names that lead to the packages, and hold no code of their own."""
NEVER_LOADED_BY = {
    "capture": ("ray", "deepspeed", "transformers", "rich", "sklearn"),
    "capture.store.store": ("botocore", "torch"),
    "analysis": ("capture.engine", "capture.training", "capture.custom_loop", "ray", "deepspeed"),
    "cluster.cli": ("torch", "numpy", "pandas", "pyarrow", "scipy", "sklearn", "ray", "rich"),
    "ontogeny.packages": ("capture", "analysis", "cluster", "torch", "numpy", "pandas"),
}
"""Package → what loading any of its modules must not load, however long the way there.

``capture.engine`` may be reached from analysis inside a function (by ``capture.replay``): what is
loaded is what a reader of a run has to have, and wait for.
"""
MOST_FILES = 16


def package_of(module: str) -> str:
    """The package in ``LAYERS`` that a module is part of; "" for a face or another project."""
    parts = module.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in candidates if name in RANKS), "")


def imports_point_one_way(sources: Sources) -> list[str]:
    """Also for what lies outside the layers: no product code imports benchmarks or tests."""
    complaints = []
    for path, text in of_product(sources).items():
        here = package_of(module_name(path))
        if module_name(path) in FACES:
            continue
        for name in sorted(imports(path, text)):
            there = package_of(name)
            upward = there and there != here and RANKS[there] >= RANKS.get(here, -1)
            if upward or name.split(".")[0] in ("benchmarks", "tests"):
                complaints.append(f"{path}: imports {name}")
    return complaints


def every_package_has_a_layer(sources: Sources) -> list[str]:
    modules = {module_name(path): path for path in of_product(sources)}
    return [
        f"{path}: is in no layer"
        for module, path in modules.items()
        if module not in FACES and not package_of(module)
    ]


def loading_stays_light(sources: Sources) -> list[str]:
    """Follows imports at load from module to module, packages' ``__init__`` included."""
    paths = {module_name(path): path for path in of_product(sources)}
    loads = {module: imports_at_load(path, sources[path]) for module, path in paths.items()}
    complaints = []
    for package, banned in NEVER_LOADED_BY.items():
        for module in (module for module in paths if within(module, package)):
            reached = reached_from(module, loads, paths)
            for name in banned:
                ours = within(name, package.split(".")[0]) and package in PRODUCT
                by = sorted(where for where, what in reached.items() if within(what, name))
                if by and not (ours and within(module, name)):
                    complaints.append(f"{paths[module]}: loads {name} ({by[0]})")
    return complaints


def reached_from(
    module: str, loads: dict[str, frozenset[str]], paths: dict[str, str]
) -> dict[str, str]:
    """Everything that loading a module loads: "importer → name" → name."""
    found, waiting, seen = {}, [module], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        names = chain(loads[current], parents(current, paths))
        for name in names:
            found[f"{current} → {name}"] = name
            target = owner(name, paths)
            if target:
                waiting += [target, *parents(target, paths)]
    return found


def parents(module: str, paths: dict[str, str]) -> list[str]:
    """Packages that are loaded before a module of theirs."""
    parts = module.split(".")
    every = (".".join(parts[:length]) for length in range(1, len(parts)))
    return [name for name in every if name in paths]


def modules_form_no_cycle(sources: Sources) -> list[str]:
    paths = {module_name(path): path for path in sources}
    graph = {
        module: {
            target
            for name in imports(path, sources[path])
            if (target := owner(name, paths)) and target != module
        }
        for module, path in paths.items()
        if module not in FACES and module != "ontogeny"  # these import by name, when asked
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" → ".join(reversed(error.args[1]))]
    return []


def folders_are_small(sources: Sources) -> list[str]:
    names = (PurePosixPath(path) for path in sources if not path.endswith("__init__.py"))
    sizes = Counter(str(path.parent) for path in names)
    return [f"{folder}: {n} files" for folder, n in sorted(sizes.items()) if n > MOST_FILES]


def packages_say_what_they_are_for(sources: Sources) -> list[str]:
    return [
        f"{path}: has no docstring"
        for path, text in of_product(sources).items()
        if path.endswith("__init__.py") and not ast.get_docstring(ast.parse(text))
    ]


# --- each rule holds, and can fail ----------------------------------------------------------------

RULES: list[Rule] = [
    imports_point_one_way,
    every_package_has_a_layer,
    loading_stays_light,
    modules_form_no_cycle,
    folders_are_small,
    packages_say_what_they_are_for,
]

OFFENCES: list[tuple[Rule, Sources]] = [
    (imports_point_one_way, {"capture/format/x.py": "import analysis.run"}),
    (imports_point_one_way, {"capture/store/x.py": "def f():\n    from cluster.cli import main"}),
    (imports_point_one_way, {"capture/store/x.py": "from capture.format import markers"}),
    (imports_point_one_way, {"capture/store/x.py": "from capture.gradients import tape"}),
    (imports_point_one_way, {"analysis/run/x.py": "import cluster.local as local"}),
    (imports_point_one_way, {"analysis/run/x.py": "from ..jobs import job"}),
    (imports_point_one_way, {"analysis/jobs/x.py": "if TYPE_CHECKING:\n    import cluster.cli"}),
    (imports_point_one_way, {"capture/store/x.py": "importlib.import_module('cluster.cli')"}),
    (imports_point_one_way, {"cluster/local/x.py": "from benchmarks import capture"}),
    (imports_point_one_way, {"cluster/cli.py": "import ontogeny"}),
    (every_package_has_a_layer, {"capture/new_package/x.py": ""}),
    (every_package_has_a_layer, {"analysis/loose.py": ""}),
    (loading_stays_light, {"analysis/run/x.py": "from capture.engine import engine"}),
    (
        loading_stays_light,
        {
            "analysis/run/x.py": "from capture.replay import steps",
            "capture/replay/steps.py": "from capture.training.loop import train",
            "capture/training/loop.py": "",
        },
    ),
    (
        loading_stays_light,
        {
            "analysis/run/x.py": "from capture.store.store import Store",
            "capture/store/__init__.py": "from capture.store.s3 import S3",
            "capture/store/s3.py": "import ray",
            "capture/store/store.py": "",
        },
    ),
    (loading_stays_light, {"cluster/cli.py": "import numpy as np"}),
    (
        loading_stays_light,
        {"ontogeny/packages.py": "", "ontogeny/__init__.py": "import capture.errors"},
    ),
    (
        modules_form_no_cycle,
        {"capture/a.py": "import capture.b", "capture/b.py": "def f():\n    import capture.a"},
    ),
    (
        modules_form_no_cycle,
        {"capture/a.py": "from . import b", "capture/b.py": "from .a import x"},
    ),
    (folders_are_small, {f"capture/store/x{number}.py": "" for number in range(17)}),
    (packages_say_what_they_are_for, {"capture/store/__init__.py": "from x import y"}),
]

HARMLESS: list[tuple[Rule, Sources]] = [
    (imports_point_one_way, {"analysis/run/x.py": "from capture.shards import schema"}),
    (imports_point_one_way, {"cluster/commands/x.py": "import capture.training, analysis.jobs"}),
    (imports_point_one_way, {"analysis/run/x.py": "from analysis.run import names"}),
    (every_package_has_a_layer, {"capture/__init__.py": "", "capture/errors.py": ""}),
    (
        loading_stays_light,
        {
            "analysis/run/x.py": "def f():\n    from capture.replay import steps",
            "capture/replay/steps.py": "from capture.training.loop import train",
            "capture/training/loop.py": "",
        },
    ),
    (loading_stays_light, {"cluster/cli.py": "if TYPE_CHECKING:\n    import pandas as pd"}),
    (modules_form_no_cycle, {"capture/a.py": "from capture import b", "capture/b.py": ""}),
    (folders_are_small, {f"capture/store/x{number}.py": "" for number in range(16)}),
    (packages_say_what_they_are_for, {"capture/store/__init__.py": '"""What it is for."""'}),
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


def test_a_complaint_names_the_files_on_the_way() -> None:
    sources = {"capture/a.py": "import capture.b\nimport ray", "capture/b.py": "import capture.a"}
    assert modules_form_no_cycle(sources) in (
        ["capture.a → capture.b → capture.a"],
        ["capture.b → capture.a → capture.b"],
    )


def test_every_layer_exists() -> None:
    modules = {module_name(path) for path in project()}
    assert RANKS.keys() <= modules


def test_the_page_on_architecture_shows_the_layers() -> None:
    page = (ROOT / "docs" / "concepts" / "architecture.md").read_text()
    assert f"```text{LAYERS}```" in page
