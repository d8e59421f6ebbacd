"""Time capture against other methods for per-sample gradients: ``python -m benchmarks.capture``.

All methods train one model (``workbench``), are checked before they are timed (``correctness``),
and are timed in interleaved blocks (``timing``). A step is everything from a batch of tokens to
updated weights; each method takes whole steps and trains with them. Recording is timed by the
segment, while its writer stores the segment before (``recording``).

The other methods run in their strongest form and do less: they leave the gradients of the body's
parameters in memory, and neither select, check nor store anything. The lines "capture" do all of
this. The line of ours that is comparable to the other methods is "factors multiplied out".
"""

import argparse
import itertools
import json
import os
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.harness import methods, peers
from benchmarks.harness.candidates import PLAIN, Candidate, has_opacus, make_candidates
from benchmarks.harness.correctness import Reference, require
from benchmarks.harness.methods import training_step
from benchmarks.harness.recording import Recording, observe, observe_untallied
from benchmarks.harness.report import Result, as_json, machine, make_result, table
from benchmarks.harness.timing import Line, measure, stopwatch
from benchmarks.harness.workbench import Workbench, make_workbench
from capture.config.records import RecordKind
from capture.config.settings import to_values
from capture.store.store import Store

DEFAULT_FOLDER = Path(__file__).parents[1] / "../shared/data/wikitext-2"
CAPTURED = "capture, not written"
FACTORS = "capture with factors, written"
CHECKPOINTS = "checkpoints alone, written"
UNTALLIED = "capture without tallies, not written"
RECORDED = "capture, written"
STUDY = "the study's method: one backward per token"
TORCH = "plain step of torch.nn.TransformerEncoder"
TOKENS = 3
"""Backward passes of the study's method that run per timed step, out of 700."""


@dataclass(frozen=True)
class Size:
    """Length of the benchmark."""

    before: int
    """Plain steps before anything else, so that the model is past its first, largest updates."""
    segment: int
    """Steps per recorded segment."""
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
    summary = compare_with_targets(results, quick=arguments.quick)
    print("\n" + table(results, missing) + "\n\n" + summary)
    if arguments.json:
        values = as_json(found_on, setting, results, missing)
        arguments.json.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.capture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--steps", type=int, default=800, help="number of timed recorded steps")
    text = "time only the plain step and the lines that write shifts, factors or checkpoints"
    parser.add_argument("--written", action="store_true", help=text)
    parser.add_argument("--quick", action="store_true", help="short segments, to test the script")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to PATH")
    return parser.parse_args()


def choose_size(arguments: argparse.Namespace, segment: int) -> Size:
    """Return the length; segments have a run's default length, as short ones cost more a step."""
    if arguments.quick:
        return Size(before=10, segment=10, rounds=2)
    return Size(before=100, segment=segment, rounds=max(1, arguments.steps // segment))


def describe(bench: Workbench, text: str, size: Size) -> dict[str, object]:
    """Return the settings that the results depend on, as plain values."""
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
    """Train for some steps, check every method, then time all of them."""
    plain = training_step(bench, methods.plain)
    for planned in itertools.islice(bench.planned_steps, size.before):
        plain(planned)
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
            samples = measure(lines, bench.planned_steps, size.rounds)
        finally:
            for recording in recordings.values():
                recording.recorder.close()
        sizes = {name: recording.sizes() for name, recording in recordings.items()}
    results = [make_result(line, samples[line.name], errors[line.name]) for line in lines]
    return [replace(one, sizes=sizes.get(one.name)) for one in results]


def make_recordings(bench: Workbench, folder: Path, segment_steps: int) -> dict[str, Recording]:
    """Return a recording for each kind of run, by the name of its line."""
    kinds: dict[str, list[RecordKind]] = {
        RECORDED: ["outliers", "tallies"],
        FACTORS: ["outliers", "tallies", "factors"],
        CHECKPOINTS: [],
    }
    return {
        name: Recording(bench, Store(str(folder / str(number))), segment_steps, kinds[name])
        for number, name in enumerate(kinds)
    }


def check(bench: Workbench, candidates: list[Candidate], twin: peers.TorchTwin) -> dict[str, float]:
    """Return the error of each line against a loop of one-datum passes, by name."""
    reference = Reference(bench, next(bench.planned_steps))
    errors = {one.name: reference.error(one.method) for one in candidates}
    errors[TORCH] = reference.error_of_torch(twin)
    errors[STUDY] = reference.error_of_tokens()
    captured = (CAPTURED, RECORDED, UNTALLIED, FACTORS)
    errors |= dict.fromkeys(captured, reference.error_of_capture())
    errors[CHECKPOINTS] = 0.0  # nothing is captured
    return errors


def make_lines(
    bench: Workbench,
    candidates: list[Candidate],
    twin: peers.TorchTwin,
    recordings: dict[str, Recording],
) -> list[Line]:
    """Return all lines in the order of the table."""
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
        study_line(bench),
    ]


def step_line(bench: Workbench, one: Candidate, longest: int) -> Line:
    step = stopwatch(training_step(bench, one.method))
    return Line(one.name, one.note, step, min(one.steps, longest))


def factors_line(recording: Recording) -> Line:
    note = f"Like '{RECORDED}', with the factors of every datum, packed on the writer's thread."
    return recording.line(FACTORS, note)


def checkpoints_line(recording: Recording) -> Line:
    note = "capture.record=checkpoints: nothing is observed; one checkpoint per segment."
    return recording.line(CHECKPOINTS, note)


def recorded_line(recording: Recording) -> Line:
    return recording.line(
        RECORDED,
        f"Like '{CAPTURED}', and the recorder writes outliers, tallies, steps and one checkpoint "
        "per segment to a local folder. B/row: outliers. KB/datum: all files, per datum and step.",
    )


def observed_lines(bench: Workbench, longest: int) -> list[Line]:
    """Return the lines of capture that store nothing, with tallies and without."""
    captured = Line(
        CAPTURED,
        "A run's step with audit, outliers, positions and tallies; nothing is stored.",
        stopwatch(lambda planned: observe(bench, planned)),
        min(50, longest),
    )
    untallied = Line(
        UNTALLIED,
        f"Like '{CAPTURED}', without tallies; the difference is the cost of tallies.",
        stopwatch(lambda planned: observe_untallied(bench, planned)),
        min(50, longest),
    )
    return [captured, untallied]


def torch_line(bench: Workbench, twin: peers.TorchTwin, longest: int) -> Line:
    return Line(
        TORCH,
        "Torch's transformer and nn.Dropout on the same weights; shows that our plain step is "
        "not slow. Error: of the logits, dropout off.",
        stopwatch(training_step(bench, peers.torch_transformer(twin))),
        min(20, longest),
    )


def study_line(bench: Workbench) -> Line:
    return Line(
        STUDY,
        f"EXTRAPOLATED from {TOKENS} of the 700 backward passes per step; nothing is stored (the "
        "study stored 2.9 MB per datum). Error: of one datum, all its tokens.",
        methods.extrapolated(bench, TOKENS),
        1,
    )


def compare_with_targets(results: list[Result], *, quick: bool) -> str:
    """Return a line for each of the project's targets, with the measured ratio."""
    if quick:
        return "A quick run only checks that the methods agree. Do not use its times."
    ratio = {result.name: result.ratio[1] for result in results}
    limits = {RECORDED: 1.15, FACTORS: 1.35, CHECKPOINTS: 1.03}
    lines = [
        f"{name}: {ratio[name]:.2f} × a plain step (target: at most {limit})"
        for name, limit in limits.items()
    ]
    if STUDY in ratio:
        tallies = ratio[CAPTURED] - ratio[UNTALLIED]
        lines.append(f"tallies: {tallies:.3f} of a plain step (target: at most 0.05)")
        times = f"{ratio[STUDY] / ratio[RECORDED]:.0f} ×"
        lines.append(f"{STUDY}: {times} the time of '{RECORDED}' (target: at least 300)")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
