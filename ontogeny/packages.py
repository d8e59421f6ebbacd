"""Find Ontogeny's own packages, whatever files of the same names lie beside the user's script.

The packages ``capture``, ``analysis`` and ``cluster`` are top-level names. A user's ``analysis.py``
beside a script precedes ours on ``sys.path`` and would be imported in its place. ``load_packages``
therefore imports each package from the folder that holds ``ontogeny``, without a search of
``sys.path``. Only where the user's file is already imported under that name can both not be used.
"""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

PACKAGES = ("capture", "analysis", "cluster")
ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds ``ontogeny`` and the packages: a checkout, or ``site-packages``."""


def load_packages() -> None:
    """Import Ontogeny's packages (each a light ``__init__``) under their names.

    Raises ``ImportError`` in one line, with the file in the way, where another module of such a
    name is loaded already.
    """
    for name in PACKAGES:
        loaded = sys.modules.get(name)
        if loaded is None:
            load_package(name)
        elif not is_ours(loaded):
            raise ImportError(
                f"{origin(loaded)} is loaded as {name!r}, the name of a package of Ontogeny "
                f"({ROOT / name}). Rename that file, or do not import it together with ontogeny."
            )


def load_package(name: str) -> None:
    spec = PathFinder.find_spec(name, [str(ROOT)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{ROOT / name} is missing. Install ontogeny again.")
    module = module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def is_ours(module: ModuleType) -> bool:
    folders = getattr(module, "__path__", ())
    return any(Path(folder).resolve().parent == ROOT for folder in folders)


def origin(module: ModuleType) -> str:
    """The file of a module, or the folder of a package without ``__init__``."""
    return module.__file__ or next(iter(getattr(module, "__path__", ())), "A built-in module")
