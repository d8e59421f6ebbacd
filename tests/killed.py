"""Run as a process: captures or resumes the tiny run, and kills itself around its n-th write."""

import os
import signal
import sys
from pathlib import Path

from capture import folder as local
from tiny import make_run, tiny_config

folder, number, moment = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
put_whole = local.put_local
puts = 0


def put_or_die(path: Path, data: bytes | memoryview) -> None:
    global puts
    puts += 1
    if puts != number or moment == "after":
        put_whole(path, data)
    if puts == number:
        if moment == "within":
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_name(f".{path.name}.half").write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)


local.put_local = put_or_die
make_run(tiny_config(folder), resume=True)
