"""Runs with DeepSpeed for tests: what each worker process does."""

from pathlib import Path

from tiny import TEXT, tiny_config

from capture.config.reading import make_config
from capture.config.settings import Config
from capture.process_group import Group
from capture.store import Store
from capture.training.loop import Event, capture_run

ADAMW = (
    *("training.optimizer.kind=adamw", "training.optimizer.weight_decay=0.01"),
    *("training.learning_rate=0.003", "training.optimizer.epsilon=1e-6"),
)
SGD = ("model.dropout=0.3",)
NESTEROV = (
    *("training.optimizer.momentum=0.9", "training.optimizer.nesterov=true"),
    *("training.optimizer.weight_decay=0.01", "training.learning_rate=0.3"),
)
EVERYTHING = ("capture.units=['*']", "capture.outliers.scope=step")
VARIANTS = {
    "sgd": SGD,
    "adamw": ADAMW,
    "nesterov": (*NESTEROV, "training.accumulate=2"),
    "pieces": (*ADAMW, *EVERYTHING, "training.accumulate=2"),
    "rounded": ("training.learning_rate=0.5", "training.precision=bfloat16"),
    "bare": (*SGD, "capture.record=checkpoints"),
}
"""Settings by name, valid for every engine."""
FEW_CASES = ["sgd 1", "adamw 2", "adamw 3"]
MANY_CASES = [
    *(
        f"{variant} {stage}"
        for variant in VARIANTS
        for stage in (1, 2, 3)
        if f"{variant} {stage}" not in FEW_CASES
    ),
    *(f"adamw {stage} optimizer" for stage in (1, 2, 3)),
    "adamw 3 all",
]
"""Names of cases: a variant, a ZeRO stage, and what is offloaded."""


def settings(case: str) -> tuple[str, ...]:
    variant, stage, *offload = case.split()
    zero = ("engine=deepspeed", f"deepspeed.stage={stage}")
    return (*VARIANTS[variant], *zero, *(f"deepspeed.offload={what}" for what in offload))


def plain_config(folder: Path, variant: str, name: str = "") -> Config:
    return tiny_config(folder, *VARIANTS[variant], "training.epochs=1", name=name or variant)


def capture_few(group: Group, folder: Path) -> None:
    capture_cases(FEW_CASES, group, folder)


def capture_many(group: Group, folder: Path) -> None:
    capture_cases(MANY_CASES, group, folder)


def capture_cases(cases: list[str], group: Group, folder: Path) -> None:
    if "rounded 1" in cases:  # each worker rounds its own sum, so the plain engine gets two as well
        count = f"workers.count={group.size}"
        config = tiny_config(
            folder, *VARIANTS["rounded"], count, "training.epochs=1", name="rounded"
        )
        capture_run(config, ignore, group=group, owner="rounded.1")
    for case in cases:
        capture_one(case, group, folder, case.replace(" ", "-"))


def capture_one(case: str, group: Group, folder: Path, name: str, **options: bool) -> None:
    count = f"workers.count={group.size}"
    config = tiny_config(folder, *settings(case), count, "training.epochs=1", name=name)
    capture_run(config, ignore, group=group, owner=f"{name}.{len(options)}", **options)


def resume_on_other_engine(group: Group, folder: Path) -> None:
    """Resume half-done runs: of the plain engine with DeepSpeed; leave one for the reverse."""
    capture_one("adamw 3", group, folder, "taken-over", resume=True)
    capture_one("nesterov 2", group, folder, "taken-back", resume=True)
    capture_one("adamw 1", group, folder, "left")
    if group.rank == 0:
        delete_segment(Store(str(folder / "left")))


def delete_segment(store: Store, segment: int = 1) -> None:
    """Delete the last segment, as if the run had been killed before it."""
    for key in store.keys():
        if f"segment-{segment:06d}" in key:
            store.delete(key)


def tied_config(folder: Path, *overrides: str, name: str) -> Config:
    """Return the config of a GPT-2 with tied embeddings, all units captured."""
    text = folder / "text.txt"
    text.write_text(TEXT)
    settings = {"n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 16}
    values = {
        "run": {"uri": str(folder / name)},
        "corpus": {"kind": "text", "path": str(text), "window": 8, "validation_share": 0.05},
        "model": {"kind": "hf", "hf": {"family": "gpt2", "settings": settings}},
        "training": {"epochs": 1, "batch": 4, "device": "cpu"},
        "capture": {"segment_steps": 8, "units": ["*"], "outliers": {"k": 30}},
    }
    return make_config(values, [*ADAMW, *overrides])


def capture_tied(group: Group, folder: Path) -> None:
    overrides = ("engine=deepspeed", "deepspeed.stage=3", f"workers.count={group.size}")
    config = tied_config(folder, *overrides, name="tied-3")
    capture_run(config, ignore, group=group, owner="tied.1")


def ignore(event: Event) -> None:
    """Ignore progress reports."""
