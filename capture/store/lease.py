"""The lease of a run: a small file with an expiry that lets one capture at a time write the run.

A capture takes the lease before it changes anything, renews it while it works, checks it before
every marker, and removes it at the end. A second capture finds the lease and is refused. A stale
lease is taken over: at once if its process ran on this machine and has ended, otherwise after it
has expired.

Where the store has put-if-absent, exactly one of several simultaneous starts gets the lease.
Elsewhere each writes the lease, waits ``SETTLE_SECONDS`` and reads it back; the last writer has it.
Two cases slip through: a pause longer than that between the check and the write, and clocks that
differ by more than the expiry minus the renewal interval. Then two captures run until the one whose
lease was overwritten checks it before its next marker, and stops.
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

from capture.errors import RunError, StoreAwayError, StoreError
from capture.store.store import Store

KEY = "lease.json"
EXPIRY_SECONDS = 120.0
RENEWAL_SECONDS = 30.0
SETTLE_SECONDS = 1.0
RELEASE_SECONDS = 5.0
"""How long the end of a capture waits for the store to remove the lease."""
REMOVAL_WAIT_SECONDS = 1.0
MAX_BYTES = 4096
CLEANING = "gc-"
"""How the owner of a lease begins that is held while garbage is removed."""


@dataclass(frozen=True)
class Lease:
    """Which process writes a run, and until when. The fields are those of ``lease.json``."""

    owner: str
    """An identifier, or ``group.attempt`` for a group of workers."""
    host: str
    machine: str
    """Host name, boot id and process namespace; empty where they cannot be read."""
    pid: int
    process: str
    """Start time of the process in clock ticks since boot; distinguishes reused process ids."""
    since: str
    expires: str

    @property
    def holder(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@dataclass(frozen=True)
class TakenOver:
    """Event: this capture has taken over a stale lease."""

    holder: str
    reason: str


def stale_lease(store: Store, owner: str = "") -> TakenOver | None:
    """Return the run's stale lease, or None if there is no lease.

    Raises ``RunError`` if another capture may still hold the lease. ``owner`` is the identifier of
    the caller, as ``group.attempt``: a group that is restarted takes over from its last attempt.
    """
    found = read_lease(store)
    if found is None:
        return None
    restarted = "its group was started again" if same_group(found.owner, owner) else ""
    reason = restarted or reason_expired(found, datetime.now(UTC))
    if not reason:
        doing = "cleaned (ontogeny gc)" if found.owner.startswith(CLEANING) else "captured"
        problem = f"is being {doing} by {found.holder} (its lease expires at {found.expires})"
        raise RunError(store.uri, problem, "Let it end, stop it, or wait until its lease expires")
    return TakenOver(found.holder, reason)


def running_capture(store: Store) -> str:
    """Describe the process that holds the run's lease; empty if none does.

    Raises ``RunError`` for a file that is not a valid lease.
    """
    found = read_lease(store)
    return found.holder if found and not reason_expired(found, datetime.now(UTC)) else ""


@contextmanager
def hold_lease(
    store: Store, report: Callable[[TakenOver], None], owner: str = ""
) -> Iterator["HeldLease"]:
    """Hold the run's lease within the block; raises ``RunError`` if another capture holds it.

    ``report`` is called once if a stale lease was taken over.
    """
    stale = stale_lease(store, owner)
    lease = new_lease(owner)
    if stale:
        store.put(KEY, encode(lease))
    elif not store.put_if_absent(KEY, encode(lease)):
        stale_lease(store, owner)  # raises if another capture was faster
    # A takeover overwrites, so it needs the same wait as a store without put-if-absent.
    if stale or not has_put_if_absent(store):
        time.sleep(SETTLE_SECONDS)
    held = HeldLease(store, lease)
    held.require()
    if stale:
        report(stale)
    held.thread.start()
    try:
        yield held
    finally:
        held.release()


class HeldLease:
    """The lease that this capture holds; a background thread renews it."""

    def __init__(self, store: Store, lease: Lease) -> None:
        self.store = store
        self.lease = lease
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.renew_and_remove, name="lease", daemon=True)

    def require(self) -> None:
        """Raise ``RunError`` if another capture has taken the lease."""
        require(self.store, self.lease.owner)

    def renew_and_remove(self) -> None:
        """Renew the lease until ``release``, then remove it unless another capture has it."""
        try:
            while not self.ending.wait(RENEWAL_SECONDS):
                self.renew()
            while datetime.fromisoformat(self.lease.expires) > datetime.now(UTC):
                if self.remove():
                    return
                time.sleep(REMOVAL_WAIT_SECONDS)
        except RunError:
            return  # the check before the next marker raises it in the main thread

    def renew(self) -> None:
        try:
            self.require()
            self.lease = replace(self.lease, expires=timestamp_in(EXPIRY_SECONDS))
            self.store.put(KEY, encode(self.lease))
        except StoreError:
            return  # a failed renewal does no harm by itself; the next one tries again

    def remove(self) -> bool:
        """Delete the lease; return whether the store did it."""
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
    """Raise ``RunError`` if the run's lease does not belong to ``owner``."""
    found = read_lease(store)
    if found is None:
        problem = f"its {KEY} is gone: the run was deleted, or another process removed the lease"
        remedy = "This capture stops. Start it again, with --resume if the run is still there"
        raise RunError(store.uri, problem, remedy)
    if found.owner != owner:
        problem = f"was taken over by {found.holder}"
        remedy = "This capture stops, so that only one writes the run. The run is not damaged"
        raise RunError(store.uri, problem, remedy)


def remove_group_lease(store: Store, group: str) -> None:
    """Remove the lease of any attempt of a group whose workers have all ended."""
    found = read_lease(store)
    if found and same_group(found.owner, f"{group}."):
        store.delete(KEY)


def same_group(owner: str, other: str) -> bool:
    """Return whether both owners are attempts of the same group of workers."""
    return "." in owner and owner.partition(".")[0] == other.partition(".")[0]


def has_put_if_absent(store: Store) -> bool:
    """Return whether the store's put-if-absent is reliable; unknown for object stores, so False."""
    return "://" not in store.uri or store.uri.startswith(("file:", "local:", "memory:"))


# --- lease.json -----------------------------------------------------------------------------------


def new_lease(owner: str = "") -> Lease:
    """Return a lease for this process; without ``owner`` it gets a random identifier."""
    pid = os.getpid()
    return Lease(
        owner=owner or uuid.uuid4().hex,
        host=socket.gethostname(),
        machine=machine_id(),
        pid=pid,
        process=process_start(pid),
        since=timestamp_in(0),
        expires=timestamp_in(EXPIRY_SECONDS),
    )


def timestamp_in(seconds: float) -> str:
    """Return the time that many seconds from now, ISO 8601 in UTC."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds")


def encode(lease: Lease) -> bytes:
    return json.dumps(asdict(lease), indent=1).encode()


def read_lease(store: Store) -> Lease | None:
    """Return the run's lease, or None; raises ``RunError`` for a file that is not a valid lease."""
    try:
        data = read_start(store)
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
        raise RunError(where, "is not a valid lease", remedy) from error
    return lease


def read_start(store: Store, tries: int = 3) -> bytes:
    """Return the first bytes of the lease; read again if it was renewed between two requests."""
    try:
        with store.open(KEY) as source:
            return source.read(MAX_BYTES + 1)
    except StoreAwayError:
        raise
    except StoreError:
        if tries == 1:
            raise
    return read_start(store, tries - 1)


def reason_expired(lease: Lease, now: datetime) -> str:
    """Return why nobody holds this lease any more; empty if its capture may still run."""
    same_machine = lease.machine and lease.machine == machine_id()
    if same_machine and process_start(lease.pid) != lease.process:
        return "it has died"
    if datetime.fromisoformat(lease.expires) < now:
        return f"its lease expired at {lease.expires}"
    return ""


# --- processes of this machine --------------------------------------------------------------------


def machine_id() -> str:
    """Return an identifier of this machine since its last boot; empty if it cannot be read.

    It includes the process namespace, because process ids of two containers are unrelated.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(pid: int) -> str:
    """Return a process's start time in clock ticks since boot; empty if it does not run."""
    try:
        # The second field, the program's name, may contain spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # Z and X: ended, but still listed
