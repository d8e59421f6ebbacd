"""Models of other people's checkpoints: in a folder, or as revisions of an id on the hub.

A folder holds either a Hugging Face model folder for each checkpoint (``checkpoint-500``,
``step-1000``, …), or one ``config.json`` and a safetensors file for each checkpoint
(``step-1000.safetensors``). The number at the end of a name is the step.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.trajectory.checkpoints.pretrained import model_with_weights, pretrained_model
from capture.errors import ConfigError
from capture.models.huggingface import HFModel

STEP = re.compile(r"(\d{1,12})$", re.ASCII)
WANTED = "wanted folders such as step-1000 with config.json and model.safetensors"


@dataclass(frozen=True, eq=False)
class StoredCheckpoints:
    """Checkpoints of one training, each with the name of its folder, file or revision."""

    where: str
    names: Mapping[int, str]
    """Step → name."""
    read: Callable[[str], HFModel]
    """Function from a name to the model."""
    tokenizer: str
    """Folder or hub id whose tokenizer the models use."""

    @property
    def replays(self) -> bool:
        return False

    @property
    def available(self) -> list[int]:
        return sorted(self.names)

    def source(self, step: int) -> str:
        return self.names[step]

    def models(self, steps: Sequence[int]) -> Iterator[HFModel]:
        """Yield the models of these steps; raises what reading them raises."""
        return (self.read(self.names[step]) for step in steps)


def checkpoints_at(place: str) -> StoredCheckpoints:
    """Return the checkpoints of a folder, or of ``ID@REVISION,REVISION,…`` on the hub.

    Raises ``ConfigError`` if there are none, or two of the same step.
    """
    folder = Path(place).expanduser()
    if folder.is_dir():
        return checkpoints_in(folder)
    name, at, revisions = place.partition("@")
    if not at or not name or not revisions:
        problem = f"is neither a run nor a folder, and names no revisions; {WANTED}"
        raise ConfigError(place, problem, "Or name revisions on the hub: ID@step1000,step2000")
    names = by_step(place, [revision for revision in revisions.split(",") if revision])

    def read(revision: str) -> HFModel:
        return read_as(f"{name}@{revision}", name, revision)

    return StoredCheckpoints(place, names, read, name)


def read_as(where: str, path: str, revision: str | None = None) -> HFModel:
    """Return ``pretrained_model``; its errors name the checkpoint, not a key of a configuration."""
    try:
        return pretrained_model(path, revision)
    except ConfigError as error:
        raise ConfigError(where, error.problem, error.remedy) from error


def checkpoints_in(folder: Path) -> StoredCheckpoints:
    """Return the checkpoints of a folder; raises ``ConfigError`` for a damaged one."""
    inside = [part for part in sorted(folder.iterdir()) if STEP.search(part.stem)]
    folders = [part.name for part in inside if (part / "config.json").is_file()]
    if folders:
        require_whole(folder, folders, inside)
        names = by_step(str(folder), folders)
        last = str(folder / names[max(names)])
        tokenizer = str(folder) if (folder / "tokenizer.json").is_file() else last
        return StoredCheckpoints(
            str(folder),
            names,
            lambda name: read_as(str(folder / name), str(folder / name)),
            tokenizer,
        )
    files = [part.name for part in inside if part.suffix == ".safetensors"]
    if files and not (folder / "config.json").is_file():
        problem = "holds safetensors files, but no config.json that describes their model"
        raise ConfigError(str(folder), problem, "Add the model's config.json")
    if not files:
        raise ConfigError(str(folder), f"is no run and holds no checkpoints; {WANTED}")
    return StoredCheckpoints(
        str(folder),
        by_step(str(folder), files),
        lambda name: model_with_weights(str(folder), folder / name),
        str(folder),
    )


def require_whole(folder: Path, found: Sequence[str], inside: Sequence[Path]) -> None:
    """Raise ``ConfigError`` for a folder that is named like the checkpoints but is none."""
    kinds = {STEP.sub("", name) for name in found}
    for part in inside:
        if part.is_dir() and part.name not in found and STEP.sub("", part.name) in kinds:
            problem = f"{part.name} has no config.json, as the other checkpoints have"
            raise ConfigError(str(folder), problem, "Restore it, or move the folder away")


def by_step(where: str, names: Sequence[str]) -> dict[int, str]:
    """Return the names by the number at their end; raises ``ConfigError`` without one, or twice."""
    found: dict[int, str] = {}
    for name in names:
        number = STEP.search(name.removesuffix(".safetensors"))
        if not number:
            raise ConfigError(where, f"{name} ends in no step", "As in step1000")
        step = int(number[1])
        if step in found:
            problem = f"has two checkpoints of step {step}: {found[step]} and {name}"
            raise ConfigError(where, problem, "Move one of them away")
        found[step] = name
    return found
