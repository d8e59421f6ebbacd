"""Fetch the result of a Ray task, with errors as the command line prints them."""

from typing import Any

import ray
from ray import ObjectRef
from ray.exceptions import RayError, RayTaskError

from capture.errors import ClusterError
from cluster.on_ray.session import first_line


def result_of(reference: ObjectRef, where: str, lost: str, remedy: str) -> Any:
    """Wait for a task and return its result.

    Raises what the task raised, with its own type, or ``ClusterError(where, lost, remedy)`` if the
    task was lost with its worker.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        raise ClusterError(where, f"{lost}: {first_line(error)}", remedy) from error
