"""Whether a place can be written: asked before hours of work, not after them."""

import os
import uuid
from pathlib import Path

from capture.errors import RunError, StoreAwayError, StoreError
from capture.store.local import LocalBackend
from capture.store.store import Store


def require_writable(store: Store, folder: str) -> None:
    """Raise ``StoreError`` unless files can be written in a folder of a store, and deleted.

    On a local disk nothing is changed: the folder, or the nearest one above it that exists, is
    asked for its permissions. Elsewhere only the store knows what it allows, so a small file is
    written and deleted.
    """
    if isinstance(store.backend, LocalBackend):
        require_local(store, folder, store.backend.root / folder)
        return
    key = f"{folder}/probe-{uuid.uuid4().hex[:8]}.tmp"
    try:
        store.put(key, b"")
        store.delete(key)
    except StoreAwayError:
        raise
    except StoreError as error:
        raise StoreError(f"{store.uri}/{folder}", error.problem, error.remedy) from error


def require_folder(store: Store) -> None:
    """Raise ``RunError`` if the place of a run is a file."""
    if isinstance(store.backend, LocalBackend) and store.backend.root.is_file():
        remedy = "Name the folder of a run, as in runs/demo"
        raise RunError(store.uri, "is a file, and a run is a folder", remedy)


def require_local(store: Store, folder: str, path: Path) -> None:
    above = next(each for each in (path, *path.parents) if os.path.lexists(each))
    if not above.is_dir():
        problem = f"cannot be written: {above} is not a folder"
    elif not os.access(above, os.W_OK | os.X_OK):
        problem = f"cannot be written: no permission to write in {above}"
    else:
        return
    raise StoreError(f"{store.uri}/{folder}", problem)
