"""Where a path turns: angles between the way in and the way out.

At each checkpoint the path comes in from the last checkpoint before that is at least a radius away,
and goes out to the first one after it that is. The angle between the two does not depend on speed
or on the spacing of checkpoints, and what jitters within the radius has none. The radius is a
quarter of the path's diameter, or eight times its jitter if that is more.

Shapes: C checkpoint, K component.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.spatial.distance import cdist

RADIUS = 0.25
"""Share of the path's diameter."""
JITTERS = 8.0
"""Least radius in standard deviations of the jitter: white noise then has no angles."""


@dataclass(frozen=True)
class Turn:
    """One turn, by numbers of checkpoints."""

    at: int
    """Where the two ways meet."""
    before: int
    """Where the way in starts."""
    after: int
    """Where the way out ends."""
    angle: float
    """Degrees: 0 is straight on, 180 is back."""


def jitter(place_CK: np.ndarray) -> float:
    """Return the standard deviation of white noise in each coordinate.

    The median distance of a checkpoint from the middle of its neighbours, over what noise gives.
    """
    away_CK = place_CK[1:-1] - (place_CK[:-2] + place_CK[2:]) / 2
    wanted = np.sqrt(1.5 * stats.chi2.median(place_CK.shape[1]))
    return float(np.median(np.linalg.norm(away_CK, axis=1)) / wanted)


def angles(place_CK: np.ndarray) -> list[Turn]:
    """Return the turn at each checkpoint that has a way in and a way out, in order."""
    apart_CC = cdist(place_CK, place_CK)
    radius = max(RADIUS * float(apart_CC.max()), JITTERS * jitter(place_CK))
    found = []
    for at in range(1, len(place_CK) - 1) if radius > 0 else ():
        far_C = np.flatnonzero(apart_CC[at] >= radius)
        after = int(np.searchsorted(far_C, at))
        if 0 < after < len(far_C):
            before, end = int(far_C[after - 1]), int(far_C[after])
            inward_K, outward_K = place_CK[at] - place_CK[before], place_CK[end] - place_CK[at]
            lengths = np.linalg.norm(inward_K) * np.linalg.norm(outward_K)
            cosine = float(np.clip(inward_K @ outward_K / lengths, -1, 1))
            found.append(Turn(at, before, end, float(np.degrees(np.arccos(cosine)))))
    return found


def sharpest(place_CK: np.ndarray) -> float:
    """Return the largest angle of a path, degrees; 0 if it has none."""
    return max((turn.angle for turn in angles(place_CK)), default=0.0)


def at_its_tip(turn: Turn, place_CK: np.ndarray) -> Turn:
    """Return the turn at the checkpoint between its ends that is farthest from both.

    Where a path goes straight back, checkpoints before and after the tip have angles as large.
    """
    inside_CK = place_CK[turn.before + 1 : turn.after]
    ends_2K = place_CK[[turn.before, turn.after]]
    farthest = int(cdist(inside_CK, ends_2K).sum(1).argmax())
    return replace(turn, at=turn.before + 1 + farthest)


def turns_of(place_CK: np.ndarray) -> list[Turn]:
    """Return the sharpest turns, in order of sharpness, that lie outside each other's ways."""
    kept: list[Turn] = []
    for turn in sorted(angles(place_CK), key=lambda turn: -turn.angle):
        tip = at_its_tip(turn, place_CK)
        taken = ((other.before, other.after) for other in kept)
        if all(at <= low or at >= high for low, high in taken for at in (turn.at, tip.at)):
            kept.append(tip)
    return kept
