"""Measure uploads to an S3 gateway against a bare one: ``python -m benchmarks.scale.uploads``.

This script starts ``rclone serve s3`` on this machine and puts a relay before it that adds a
latency to every request. Through it go objects of the size of a checkpoint, in turn by
``Store.put``, as capture does it (MD5 of every part, retries), and by a bare uploader: the same
parts, 16 at once, without MD5, retries or other checks. *Share* is the bare uploader's time over
the store's: 1 means that the store is as fast. Rounds are interleaved.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

from botocore.config import Config
from botocore.session import Session

from benchmarks.harness.report import machine
from capture.store import Store
from capture.store.config import PART_BYTES

BUCKET = "uploads"
KEYS = ("AKIAUPLOADBENCHMARK1", "secret-of-the-benchmark")
AT_ONCE = 16
CHUNK_BYTES = 2**18
LATENCIES = (0.0, 0.02, 0.1)


def main() -> None:
    arguments = parse_arguments()
    num_bytes, rounds = (3 * PART_BYTES, 1) if arguments.quick else (2**28, arguments.rounds)
    with tempfile.TemporaryDirectory() as folder, gateway(Path(folder)) as port:
        found = [measure(port, latency, num_bytes, rounds) for latency in LATENCIES]
    for line in found:
        print(json.dumps({name: line[name] for name in ("latency_seconds", "share", "speed")}))
    if arguments.json:
        values = {"bytes": num_bytes, "parts_at_once": AT_ONCE, "latencies": found}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(values | {"machine": machine()}, indent=1) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale.uploads", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a small object, to test the script")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results to PATH")
    return parser.parse_args()


def measure(port: int, latency_seconds: float, num_bytes: int, rounds: int) -> dict[str, object]:
    """Upload in both ways, ``rounds`` times each; return seconds, and medians over rounds."""
    data = os.urandom(num_bytes)
    ours, bare = [], []
    with relayed(port, latency_seconds) as own_port:
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{own_port}"
        store, client = Store(f"s3://{BUCKET}/run"), make_client()
        for _ in range(rounds + 1):  # the first round opens connections and is not counted
            begin = time.monotonic()
            store.put("checkpoint", data)
            middle = time.monotonic()
            upload_bare(client, data)
            bare.append(time.monotonic() - middle)
            ours.append(middle - begin)
    ours, bare = ours[1:], bare[1:]
    shares = [b / o for o, b in zip(ours, bare, strict=True)]
    return {
        "latency_seconds": latency_seconds,
        "share": [round(own, 3) for own in (min(shares), statistics.median(shares), max(shares))],
        "speed": f"{num_bytes / statistics.median(ours) / 1e6:.0f} MB/s",
        "store_seconds": ours,
        "bare_seconds": bare,
    }


def make_client():
    config = Config(max_pool_connections=AT_ONCE, request_checksum_calculation="when_required")
    return Session().create_client("s3", config=config)


def upload_bare(client, data: bytes) -> None:
    """Upload one object in parts, ``AT_ONCE`` at a time."""
    place = {"Bucket": BUCKET, "Key": "bare"}
    upload = client.create_multipart_upload(**place)["UploadId"]

    def put_part(number: int) -> dict[str, object]:
        body = data[(number - 1) * PART_BYTES : number * PART_BYTES]
        answer = client.upload_part(**place, UploadId=upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        parts = list(pool.map(put_part, range(1, -(-len(data) // PART_BYTES) + 1)))
    client.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})


@contextlib.contextmanager
def gateway(folder: Path) -> Iterator[int]:
    """Serve a bucket in the folder until the end of the block; yield the port."""
    (folder / "data" / BUCKET).mkdir(parents=True)
    (folder / "config").touch()
    for name, value in zip(("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"), KEYS, strict=True):
        os.environ[f"AWS_{name}"] = value
    os.environ["AWS_REGION"] = "us-east-1"
    port = free_port()
    program = Path(sys.executable).with_name("rclone")
    command = [program, "serve", "s3", folder / "data", "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", ",".join(KEYS), "--config", folder / "config", "--log-level", "ERROR"]
    process = subprocess.Popen(command)
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def wait_for(port: int) -> None:
    """Wait until a server answers, whatever it says."""
    for _ in range(200):
        try:
            urlopen(f"http://127.0.0.1:{port}")
        except HTTPError:
            return
        except (URLError, OSError):
            time.sleep(0.1)
    raise SystemExit("rclone does not answer")


@contextlib.contextmanager
def relayed(port: int, latency_seconds: float) -> Iterator[int]:
    """Relay connections to the port; each request waits for the latency. Yields another port."""
    started: Future[tuple[int, Callable[[], object]]] = Future()
    work = relay(port, latency_seconds, started)
    thread = threading.Thread(target=asyncio.run, args=(work,), daemon=True)
    thread.start()
    own_port, end = started.result()
    try:
        yield own_port
    finally:
        end()
        thread.join()


async def relay(
    port: int, latency_seconds: float, started: Future[tuple[int, Callable[[], object]]]
) -> None:
    """Relay until the second of the started values is called."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", port)
        answered = asyncio.Event()
        answered.set()

        async def requests() -> None:
            while chunk := await reader.read(CHUNK_BYTES):
                if answered.is_set():
                    answered.clear()
                    await asyncio.sleep(latency_seconds)
                server_writer.write(chunk)
                await server_writer.drain()
            server_writer.close()

        async def answers() -> None:
            while chunk := await server_reader.read(CHUNK_BYTES):
                answered.set()
                writer.write(chunk)
                await writer.drain()
            writer.close()

        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.gather(requests(), answers())

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    loop, ending = asyncio.get_running_loop(), asyncio.Event()
    end = functools.partial(loop.call_soon_threadsafe, ending.set)
    started.set_result((server.sockets[0].getsockname()[1], end))
    await ending.wait()
    server.close()


if __name__ == "__main__":
    main()
