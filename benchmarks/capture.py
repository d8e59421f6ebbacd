"""What capture costs, and what other ways to the same would: ``python -m benchmarks.capture``.

All methods train one model (``workbench``), all are proved right before they are timed
(``correctness``), all are timed side by side (``timing``). A step is everything from a batch of
tokens to updated weights; each method takes whole steps and trains with them. Recording is timed by
the segment, with its writer at work beside it (``recording``).

The other ways are given their strongest form here, and credit for less: they leave the gradients of
the body's parameters in memory and neither select nor check nor store anything, as ours does in the
lines that say "capture". The line of ours that does as little as they do is "factors multiplied
out".
"""

import argparse
import importlib.util
import itertools
import json
import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness import methods, peers
from benchmarks.harness.correctness import Reference, require
from benchmarks.harness.methods import Method, training_step
from benchmarks.harness.recording import Recording, observe, observe_untallied
from benchmarks.harness.report import Result, as_json, machine, make_result, table
from benchmarks.harness.timing import Line, measure, stopwatch
from benchmarks.harness.workbench import Workbench, make_workbench
from capture.config.records import RecordKind
from capture.config.settings import to_values
from capture.store.store import Store

DEFAULT_FOLDER = Path(__file__).parents[1] / "../shared/data/wikitext-2"
PLAIN = "plain step"
CAPTURED = "capture, not written"
FACTORS = "capture with factors, written"
CHECKPOINTS = "checkpoints alone, written"
UNTALLIED = "capture without tallies, not written"
RECORDED = "capture, written"
POST = "the post's way: one backward per token"
TORCH = "plain step of torch.nn.TransformerEncoder"
TOKENS = 3
"""Backward passes of the post's way that are timed a step; it has 700."""


@dataclass(frozen=True)
class Candidate:
    """A method of ours or of others, and how many steps of it are timed a round."""

    name: str
    method: Method
    steps: int
    note: str


@dataclass(frozen=True)
class Size:
    """How long the benchmark takes."""

    before: int
    """Plain steps before anything else, so that the model is past its first wild ones."""
    segment: int
    rounds: int


def main() -> None:
    arguments = parse_arguments()
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    folder = Path(os.environ.get("ONTOGENY_WIKITEXT2", DEFAULT_FOLDER))
    bench, text = make_workbench(folder)
    size = choose_size(arguments, bench.plan.config.capture.segment_steps)
    found_on, setting = machine(), describe(bench, text, size)
    print("\n".join(f"{key}: {value}" for key, value in (found_on | setting).items()), flush=True)
    results = run(bench, size, written=arguments.written)
    missing = [] if has_opacus() else ["Opacus is not installed: pip install -e '.[bench]'"]
    print("\n" + table(results, missing) + "\n\n" + verdict(results, quick=arguments.quick))
    if arguments.json:
        values = as_json(found_on, setting, results, missing)
        arguments.json.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=800, help="timed steps that are recorded")
    text = "only the plain step and what a run writes: shifts, factors, checkpoints"
    parser.add_argument("--written", action="store_true", help=text)
    parser.add_argument("--quick", action="store_true", help="see that it works: short segments")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there too")
    return parser.parse_args()


def choose_size(arguments: argparse.Namespace, segment: int) -> Size:
    """Segments are as long as a run's by default, for a shorter one is dearer by the step."""
    if arguments.quick:
        return Size(before=10, segment=10, rounds=2)
    return Size(before=100, segment=segment, rounds=max(1, arguments.steps // segment))


def describe(bench: Workbench, text: str, size: Size) -> dict[str, object]:
    config = to_values(bench.plan.config)
    return {
        "text": text,
        "vocabulary": len(bench.model.decoder.bias),
        "window": config["corpus"]["window"],
        "model": config["model"],
        "training": config["training"],
        "captured_parameters": bench.observer.layout.size,
        "outliers": config["capture"]["outliers"],
        "segment_steps": size.segment,
        "rounds": size.rounds,
    }


def run(bench: Workbench, size: Size, *, written: bool = False) -> list[Result]:
    """Train a little, prove every method right, time them."""
    plain = training_step(bench, methods.plain)
    for turn in itertools.islice(bench.turns, size.before):
        plain(turn)
    twin = peers.TorchTwin(bench.model)
    candidates = make_candidates(bench)
    errors = check(bench, candidates, twin)
    require(errors)
    with tempfile.TemporaryDirectory() as folder:
        recordings = make_recordings(bench, Path(folder), size.segment)
        lines = make_lines(bench, candidates, twin, recordings)
        if written:
            lines = [line for line in lines if line.name == PLAIN or line.name in recordings]
        try:
            samples = measure(lines, bench.turns, size.rounds)
        finally:
            for recording in recordings.values():
                recording.recorder.close()
        sizes = {name: recording.sizes() for name, recording in recordings.items()}
    results = [make_result(line, samples[line.name], errors[line.name]) for line in lines]
    return [replace(one, sizes=sizes.get(one.name)) for one in results]


def make_recordings(bench: Workbench, folder: Path, segment_steps: int) -> dict[str, Recording]:
    """One of each kind of run, by the name of its line."""
    kinds: dict[str, list[RecordKind]] = {
        RECORDED: ["outliers", "tallies"],
        FACTORS: ["outliers", "tallies", "factors"],
        CHECKPOINTS: [],
    }
    return {
        name: Recording(bench, Store(str(folder / str(place))), segment_steps, kinds[name])
        for place, name in enumerate(kinds)
    }


def check(bench: Workbench, candidates: list[Candidate], twin: peers.TorchTwin) -> dict[str, float]:
    """How far each line is from a loop of one-datum passes, by name."""
    reference = Reference(bench, next(bench.turns))
    errors = {one.name: reference.error(one.method) for one in candidates}
    errors[TORCH] = reference.error_of_torch(twin)
    errors[POST] = reference.error_of_tokens()
    captured = (CAPTURED, RECORDED, UNTALLIED, FACTORS)
    errors |= dict.fromkeys(captured, reference.error_of_capture())
    errors[CHECKPOINTS] = 0.0  # nothing is captured
    return errors


def make_candidates(bench: Workbench) -> list[Candidate]:
    """The methods that are functions of a turn, the plain step first."""
    found = [
        Candidate(PLAIN, methods.plain, 20, "Our model and dropout, nothing captured; the 1.00."),
        Candidate(
            "ours: factors multiplied out",
            methods.from_factors,
            20,
            "Every datum's dense gradients of the body, in memory: what the lines below it yield.",
        ),
        Candidate(
            "one backward per datum",
            methods.datum_by_datum,
            3,
            "20 forward and backward passes of a batch of one. What the errors are measured from.",
        ),
        Candidate(
            "torch.func: vmap(grad), then a plain pass",
            methods.vmap_grad,
            3,
            "The body's from vmap(grad); a plain pass for the rest of the model's update.",
        ),
        Candidate(
            "torch.func: vmap over copies of the weights",
            methods.vmap_copies,
            5,
            "One view of the body's weights per datum, vmap, one ordinary backward pass.",
        ),
    ]
    return found + (opacus_candidates(bench) if has_opacus() else [])


def opacus_candidates(bench: Workbench) -> list[Candidate]:
    body = peers.opacus(bench.model, body_only=True)
    whole = peers.opacus(bench.model, body_only=False)
    equal = "The model with nn.Linear in attention (Opacus refuses in_proj_weight)"
    return [
        Candidate("Opacus: hooks on the body", body, 10, f"{equal}; dense gradients of the body."),
        Candidate(
            "Opacus: hooks on everything",
            whole,
            2,
            f"{equal}; its default: embedding and unembedding too, 46 MB a datum.",
        ),
    ]


def has_opacus() -> bool:
    return importlib.util.find_spec("opacus") is not None


def make_lines(
    bench: Workbench,
    candidates: list[Candidate],
    twin: peers.TorchTwin,
    recordings: dict[str, Recording],
) -> list[Line]:
    """All lines in the order of the table; recording stands beside the plain step."""
    longest = recordings[RECORDED].segment_steps
    plain, *others = (step_line(bench, one, longest) for one in candidates)
    return [
        plain,
        recorded_line(recordings[RECORDED]),
        factors_line(recordings[FACTORS]),
        checkpoints_line(recordings[CHECKPOINTS]),
        *observed_lines(bench, longest),
        torch_line(bench, twin, longest),
        *others,
        post_line(bench),
    ]


def step_line(bench: Workbench, one: Candidate, longest: int) -> Line:
    step = stopwatch(training_step(bench, one.method))
    return Line(one.name, one.note, step, min(one.steps, longest))


def factors_line(recording: Recording) -> Line:
    note = "The same and the factors of every datum, packed on the writer's thread."
    return recording.line(FACTORS, note)


def checkpoints_line(recording: Recording) -> Line:
    note = "capture.record=checkpoints: nothing observed, a checkpoint a segment."
    return recording.line(CHECKPOINTS, note)


def recorded_line(recording: Recording) -> Line:
    return recording.line(
        RECORDED,
        "The same, with the recorder and its writer: outliers, steps, a checkpoint a segment, "
        "to a local folder. B/row: outliers. KB/datum: everything, per datum and step.",
    )


def observed_lines(bench: Workbench, longest: int) -> list[Line]:
    """Capture of which nothing is stored, with tallies and without."""
    captured = Line(
        CAPTURED,
        "What a run does a step, audit, outliers, positions, tallies, but nothing is stored.",
        stopwatch(lambda turn: observe(bench, turn)),
        min(50, longest),
    )
    untallied = Line(
        UNTALLIED,
        "The same without tallies: the difference is what they cost.",
        stopwatch(lambda turn: observe_untallied(bench, turn)),
        min(50, longest),
    )
    return [captured, untallied]


def torch_line(bench: Workbench, twin: peers.TorchTwin, longest: int) -> Line:
    return Line(
        TORCH,
        "Torch's transformer and nn.Dropout on the same weights: our plain step is no straw man. "
        "Error: of the logits, dropout off.",
        stopwatch(training_step(bench, peers.torch_own(twin))),
        min(20, longest),
    )


def post_line(bench: Workbench) -> Line:
    return Line(
        POST,
        f"EXTRAPOLATED from {TOKENS} of the 700 backward passes a step; nothing stored (the post "
        "stored 2.9 MB a datum). Error: of one datum, all its tokens.",
        methods.extrapolated(bench, TOKENS),
        1,
    )


def verdict(results: list[Result], *, quick: bool) -> str:
    """The ratios that the project has set itself."""
    if quick:
        return "A quick run proves the methods right; its times are no result."
    ratio = {result.name: result.ratio[1] for result in results}
    limits = {RECORDED: 1.15, FACTORS: 1.35, CHECKPOINTS: 1.03}
    told = [
        f"{name}: {ratio[name]:.2f} × a plain step (target: at most {limit})"
        for name, limit in limits.items()
    ]
    if POST in ratio:
        tallies = ratio[CAPTURED] - ratio[UNTALLIED]
        told.append(f"tallies: {tallies:.3f} of a plain step (target: at most 0.05)")
        told.append(f"{POST}: {ratio[POST] / ratio[RECORDED]:.0f} × that (target: at least 300)")
    return "\n".join(told)


if __name__ == "__main__":
    main()
