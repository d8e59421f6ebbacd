"""All that two processes do in one go: record every kind of loop, and meet every refusal."""

import gc
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from packed_ranks import train_packed
from recorded_ranks import SETTINGS, SLOW, STEPS, is_identical, take_steps, train
from refused_ranks import CAUSES, error_of

from capture.process_group import Group

Part = Callable[[Group, Path], Any]
"""What each rank runs. Its result must be JSON."""
PACKED = ("packed rows", "sharded packed rows")
IDENTICAL = ("clipped", "sharded adamw", "sharded rounded")


def all_parts() -> Iterator[tuple[str, Part]]:
    """Yield every part with its name; starting processes for each would take seconds."""
    for name in sorted(SETTINGS.keys() - SLOW):
        yield name, partial(train_one, name)
    for name in PACKED:
        yield name, partial(train_one_packed, name)
    yield "resumed", partial(take_some, "adamw", "resumed", range(2, STEPS))
    yield "half", partial(take_some, "adamw", "half", range(2))
    yield "resharded", partial(take_some, "sharded adamw", "resharded", range(2, STEPS))
    yield "identical", are_identical
    for name, cause in CAUSES.items():
        yield name, partial(met, name, cause)


def train_one(name: str, group: Group, folder: Path) -> None:
    train(SETTINGS[name], folder, name, group)


def train_one_packed(name: str, group: Group, folder: Path) -> None:
    train_packed(folder, name, group, sharded=name == "sharded packed rows")


def take_some(setting: str, name: str, steps: range, group: Group, folder: Path) -> None:
    take_steps(SETTINGS[setting], folder, name, group, [group], steps)


def are_identical(group: Group, folder: Path) -> list[bool]:
    return [is_identical(name, group, folder) for name in IDENTICAL]


def met(name: str, cause: Callable[[Group, Path], None], group: Group, folder: Path) -> str:
    return error_of(cause, group, folder / name)


def record_everything(group: Group, folder: Path) -> None:
    """Run all parts, and write the result of each to a file once it is there."""
    gc.freeze()  # what is imported stays, so that collections below take no time
    with results_file(folder, group.rank).open("w") as file:
        for name, part in all_parts():
            result = part(group, folder)
            print(json.dumps([name, result]), file=file, flush=True)
            # Models whose recording has ended go now, and not while another one is recorded.
            gc.collect()


def results_file(folder: Path, rank: int) -> Path:
    return folder / f"results-{rank}.jsonl"


def results(folder: Path, size: int) -> dict[str, list[Any]]:
    """Return the result of every rank, by rank, of the parts that all ranks have finished."""
    ranks = [
        dict(json.loads(line) for line in results_file(folder, rank).read_text().splitlines())
        for rank in range(size)
    ]
    return {
        name: [own[name] for own in ranks] for name in ranks[0] if all(name in r for r in ranks)
    }
