"""One capture a run: whoever writes a run holds its lease, a small file that expires.

A capture takes the lease before it changes anything, renews it while it works, looks at it before
every marker, and removes it at the end. A second capture finds it and is refused. One that was left
behind is taken over: at once if the process that held it ran on this machine and is gone, else when
it has expired.

Where put-if-absent is honoured, one of several that start at once gets the lease. Elsewhere each
writes, waits, and reads back: the last one has it. What slips through (a pause of more than
``SETTLE_SECONDS`` between looking and writing; clocks that differ by more than an expiry less a
renewal) is found before the next marker by the one that was overwritten, which stops.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from capture.errors import RunError, StoreError
from capture.store.store import Store

KEY = "lease.json"
EXPIRY_SECONDS = 120.0
RENEWAL_SECONDS = 30.0
SETTLE_SECONDS = 1.0
RELEASE_SECONDS = 5.0
"""How long the end of a capture waits for a store to remove the lease."""
AGAIN_SECONDS = 1.0
MAX_BYTES = 4096


@dataclass(frozen=True)
class Lease:
    """Who writes a run, and until when."""

    owner: str
    host: str
    machine: str
    """The host as it is since it was started, and its process table; empty if that is unknown."""
    pid: int
    process: str
    """When the process began, by the machine's own count."""
    since: str
    expires: str

    @property
    def holder(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass(frozen=True)
class TakenOver:
    """A lease was left behind, and is ours now."""

    holder: str
    reason: str


def left_behind(store: Store, owner: str = "") -> TakenOver | None:
    """A lease that nobody holds any more; raises ``RunError`` if somebody may.

    ``owner``: who asks, as ``group.attempt``; a group that is started again takes over from itself.
    """
    found = read_lease(store)
    if found is None:
        return None
    again = "" if not same_group(found.owner, owner) else "its group was started again"
    reason = again or why_free(found, datetime.now(UTC))
    if not reason:
        problem = f"is being captured by {found.holder} (its lease expires at {found.expires})"
        raise RunError(store.uri, problem, "Let it end, stop it, or wait until its lease expires")
    return TakenOver(found.holder, reason)


@contextmanager
def held(store: Store, report: Callable[[TakenOver], None], owner: str = "") -> Iterator["Holding"]:
    """Hold the run's lease; raises ``RunError`` if another capture does."""
    left = left_behind(store, owner)
    lease = of_this_process(owner)
    if left:
        store.put(KEY, encode(lease))
    elif not store.put_if_absent(KEY, encode(lease)):
        left_behind(store, owner)
    if left or not is_exclusive(store):
        time.sleep(SETTLE_SECONDS)
    holding = Holding(store, lease)
    holding.require()
    if left:
        report(left)
    holding.thread.start()
    try:
        yield holding
    finally:
        holding.release()


class Holding:
    """The lease while it is ours; a thread renews it."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self.store = store
        self.lease = lease
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.keep, name="lease", daemon=True)

    def require(self) -> None:
        """Raises ``RunError`` if the lease is not ours any more."""
        require(self.store, self.lease.owner)

    def keep(self) -> None:
        """Renew the lease now and then; remove it at the end, unless another has it.

        A renewal that fails does no harm by itself: whether the lease is ours decides.
        """
        try:
            while not self.ending.wait(RENEWAL_SECONDS):
                self.renew()
            while datetime.fromisoformat(self.lease.expires) > datetime.now(UTC):
                if self.remove():
                    return
                time.sleep(AGAIN_SECONDS)
        except RunError:
            return  # the next marker finds out

    def renew(self) -> None:
        try:
            self.require()
            self.lease = replace(self.lease, expires=at(EXPIRY_SECONDS))
            self.store.put(KEY, encode(self.lease))
        except StoreError:
            return  # it is renewed when the store is back

    def remove(self) -> bool:
        try:
            self.require()
            self.store.delete(KEY)
        except StoreError:
            return False
        return True

    def release(self) -> None:
        self.ending.set()
        self.thread.join(RELEASE_SECONDS)


def require(store: Store, owner: str) -> None:
    """Raises ``RunError`` if the lease is not this owner's."""
    found = read_lease(store)
    if found is None or found.owner != owner:
        problem = f"was taken over by {found.holder if found else 'another capture'}"
        remedy = "Of two captures of one run this one stops; nothing of the run is damaged"
        raise RunError(store.uri, problem, remedy)


def withdraw(store: Store, group: str) -> None:
    """Remove the lease of a group whose workers have all ended, whichever of them had it."""
    found = read_lease(store)
    if found and same_group(found.owner, f"{group}."):
        store.delete(KEY)


def same_group(owner: str, other: str) -> bool:
    """Whether both are attempts of one group of workers."""
    return "." in owner and owner.partition(".")[0] == other.partition(".")[0]


def is_exclusive(store: Store) -> bool:
    """Whether put-if-absent can be relied on."""
    return "://" not in store.uri or store.uri.startswith(("file:", "local:", "memory:"))


# --- the file -------------------------------------------------------------------------------------


def of_this_process(owner: str = "") -> Lease:
    pid = os.getpid()
    began = process_of(pid)
    owner = owner or uuid.uuid4().hex
    return Lease(owner, socket.gethostname(), machine(), pid, began, at(0), at(EXPIRY_SECONDS))


def at(seconds: float) -> str:
    """The moment in so many seconds."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def encode(lease: Lease) -> bytes:
    return json.dumps(asdict(lease), indent=1).encode()


def read_lease(store: Store) -> Lease | None:
    """None where there is none; raises ``RunError`` for a file that is no lease."""
    try:
        with store.open(KEY) as source:
            data = source.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    try:
        lease = Lease(**json.loads(data))
        aware = datetime.fromisoformat(lease.expires).tzinfo is not None
        if not (aware and isinstance(lease.pid, int) and len(data) <= MAX_BYTES):
            raise ValueError
    except (ValueError, TypeError, RecursionError) as error:
        where = f"{store.uri}/{KEY}"
        remedy = "Delete it if no capture of this run is under way"
        raise RunError(where, "is no readable lease", remedy) from error
    return lease


def why_free(lease: Lease, now: datetime) -> str:
    """Why nobody holds this lease any more; empty while somebody may."""
    if lease.machine and lease.machine == machine() and process_of(lease.pid) != lease.process:
        return "it has died"
    if datetime.fromisoformat(lease.expires) < now:
        return f"its lease expired at {lease.expires}"
    return ""


# --- this machine ---------------------------------------------------------------------------------


def machine() -> str:
    """What tells this machine, since it was started, from all others; empty if that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_of(pid: int) -> str:
    """When a process of this machine began; empty if there is none or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
