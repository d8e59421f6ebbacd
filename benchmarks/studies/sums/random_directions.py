"""Removed directions beside random ones: claims and tables of the page on grokking."""

from typing import Any

import numpy as np

from benchmarks.studies.study import Results, percent, table

PLACES = ("below", "within", "above")


def random_cases(every: list[Results], nulls: list[Results]) -> list[dict[str, Any]]:
    """Return each removal beside its nulls: accuracy without the direction (``number``, from 1),
    after moves as far, and after single random removals."""
    found = []
    for null in nulls:
        own = next(own["snapshots"] for own in every if own["seed"] == null["seed"])
        for at, draw_D in null["removed"].items():
            pairs = zip(own["directions"], null["as_far"][at], strict=True)
            for number, (one, far_D) in enumerate(pairs, 1):
                left = one["without"][at][1]
                found.append({"number": number, "left": left, "far": far_D, "single": draw_D})
    return found


def random_claims(every: list[Results], nulls: list[Results]) -> dict[str, bool]:
    """Return what the page says of random directions → whether all seeds that have some agree."""
    first, later = first_and_later(random_cases(every, nulls))
    return {
        "without the first direction the accuracy is within the range of random moves as far": all(
            place(case, "far") == "within" for case in first
        ),
        "without a later direction it is never below that range, and above it in most cases": (
            counted(later, "far", "below") == 0 and counted(later, "far", "above") > len(later) / 2
        ),
        "without a later direction it is within the range of random removals": all(
            place(case, "single") == "within" for case in later
        ),
        "without the first direction it is seldom below every random removal": counted(
            first, "single", "below"
        )
        <= len(first) / 2,
    }


def first_and_later(cases: list[Results]) -> tuple[list[Results], list[Results]]:
    first = [case for case in cases if case["number"] == 1]
    return first, [case for case in cases if case["number"] > 1]


def place(case: Results, null: str) -> str:
    """Return whether an accuracy is below, within or above the range of a null."""
    if case["left"] < min(case[null]):
        return "below"
    return "above" if case["left"] > max(case[null]) else "within"


def counted(cases: list[Results], null: str, where: str) -> int:
    return sum(place(case, null) == where for case in cases)


def random_counts(every: list[Results], nulls: list[Results]) -> list[str]:
    """Return in how many cases an accuracy is outside the ranges of the nulls."""
    rows = []
    for label, cases in zip(
        ("the first", "a later one"), first_and_later(random_cases(every, nulls)), strict=True
    ):
        cells = [
            ", ".join(str(counted(cases, null, where)) for where in PLACES)
            for null in ("far", "single")
        ]
        rows.append([label, str(len(cases)), *cells])
    head = ["direction removed", "cases (seeds · steps · directions)"]
    head += ["below, within, above the range of moves as far"]
    return table([*head, "of single random removals"], rows)


def random_table(every: list[Results], nulls: list[Results]) -> list[str]:
    """Return accuracies without each direction beside those of random directions."""
    own_of = {own["seed"]: own for own in every}
    judged, rows = list(every[0]["snapshots"]["whole"]), []
    for null in nulls:
        own = own_of[null["seed"]]["snapshots"]
        rows += [[str(null["seed"]), "none"], [str(null["seed"]), "one at random"]]
        for at in judged:
            rows[-2] += ["–", percent(own["whole"][at][1]), "–"]
            rows[-1] += ["–", "–", range_of(null["removed"][at])]
        for place, one in enumerate(own["directions"]):
            rows.append([str(null["seed"]), str(place + 1)])
            for at in judged:
                rows[-1] += [percent(null["share"][at][place]), percent(one["without"][at][1])]
                rows[-1].append(range_of(null["as_far"][at][place]))
    head = ["seed", "direction removed"]
    for at in judged:
        head += [f"its part of the squared length, step {int(at):,}", "accuracy without it"]
        head.append("accuracy, at random")
    return table(head, rows)


def range_of(share_D: list[float]) -> str:
    """Return the mean of random draws, and the lowest and highest."""
    low, high = percent(min(share_D)), percent(max(share_D))
    return f"{percent(float(np.mean(share_D)))} ({low} to {high})"
