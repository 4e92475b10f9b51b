"""Many streaming clients at once, good ones and bad ones, against the fake engine or a real model.

    cargo build --release -p eyas-serve --example fake
    python tools/serve/load.py --seconds 600 -- target/release/examples/fake --port 0 --delay-ms 20 --care off
    python tools/serve/load.py --seconds 600 --real -- target/release/eyas serve --model ... --adapter ... --port 0 \\
        --care off

Every stream is compared token by token with what it must be: the fake's answers follow from the prompt, and a real
model's are those that it gave to the same request alone. Prints how long first tokens and tokens took, and the server's
memory over time. With care on whole sentences come at once, and gaps between pieces are not those between tokens.
Needs Python only.
"""

import argparse
import asyncio
import json
import random
import resource
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlparse

from server import running

QUESTIONS = [
    "What is a panic attack?", "How can I sleep better?", "Why does stress hurt?", "What helps against worry?",
    "How do I talk to a friend?", "What is mindfulness?", "壓力大的時候怎麼辦？", "What do therapists do?",
]


@dataclass
class Figures:
    """What was measured."""

    first: list[float] = field(default_factory=list)
    each: list[float] = field(default_factory=list)
    outcomes: Counter = field(default_factory=Counter)
    memory: list[float] = field(default_factory=list)


class Client:
    """Speaks to one server over plain sockets."""

    def __init__(self, address: str) -> None:
        url = urlparse(address)
        self.host, self.port = url.hostname, url.port
        self.crowded = False

    async def connect(self, **options) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection."""
        return await asyncio.open_connection(self.host, self.port, **options)

    def head(self, length: int, path: str = "/v1/chat/completions") -> bytes:
        """The head of a POST."""
        return (f"POST {path} HTTP/1.1\r\nhost: {self.host}\r\ncontent-type: application/json\r\nconnection: close\r\n"
                f"content-length: {length}\r\n\r\n").encode()

    async def post(self, body: bytes) -> tuple[int, bytes]:
        """Sends a body and reads the whole answer."""
        reader, writer = await self.connect()
        try:
            writer.write(self.head(len(body)) + body)
            answer = await asyncio.wait_for(reader.read(), 60)
            if not answer:
                raise ConnectionError("hung up on")
            return int(answer.split(b" ", 2)[1]), answer.partition(b"\r\n\r\n")[2]
        finally:
            writer.close()

    async def turn(self, request: dict, figures: Figures) -> str | int:
        """As stream, and a connection that was hung up on before the answer is to come back at once."""
        try:
            return await self.stream(request, figures)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            # Only a crowd does that, and never in the middle of an answer.
            assert self.crowded and not getattr(error, "partial", b""), error
            return 1

    async def stream(self, request: dict, figures: Figures | None, pause: float = 0.0) -> str | int:
        """The text of a streamed answer, or the seconds after which to come back."""
        reader, writer = await self.connect()
        try:
            body = json.dumps(request | {"stream": True}).encode()
            start = last = time.perf_counter()
            writer.write(self.head(len(body)) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head.split(b" ", 2)[1])
            if status in (429, 503):
                wait = [line for line in head.decode().splitlines() if line.startswith("retry-after:")]
                return int(wait[0].split(":")[1])
            assert status == 200, head + await reader.read()
            text, finished = [], False
            try:
                async for line in reader:
                    if not line.startswith(b"data: "):
                        continue
                    if line.strip() == b"data: [DONE]":
                        assert finished, "the stream ended without a reason"
                        return "".join(text)
                    event = json.loads(line[6:])
                    assert "error" not in event, event
                    choice = event["choices"][0]
                    finished = finished or choice["finish_reason"] is not None
                    if piece := choice["delta"].get("content"):
                        now = time.perf_counter()
                        if figures is not None:
                            (figures.each if text else figures.first).append(now - (last if text else start))
                        last = now
                        text.append(piece)
                        if pause:
                            await asyncio.sleep(pause)
            except ConnectionError as error:
                raise AssertionError("the stream broke off") from error
            raise AssertionError(f"the stream broke off after {len(text)} pieces")
        finally:
            writer.close()


class Fake:
    """Requests whose answers follow from them."""

    def __init__(self) -> None:
        self.made = 0

    async def prepare(self, _: Client) -> None:
        """Nothing to prepare."""

    def request(self, dice: random.Random) -> tuple[dict, str]:
        """A request, and its answer."""
        self.made += 1
        tag, words = f"t{self.made}x{dice.randrange(10**6)}", dice.randrange(5, 80)
        messages = [{"role": "user", "content": f"Please say #{tag}*{words}"}]
        request = {"model": dice.choice(["fake", "fake-tuned"]), "messages": messages}
        return request, "".join(f"{tag}.{i} " for i in range(words))


class Real:
    """Requests whose answers were asked for before, one at a time."""

    def __init__(self, tokens: int) -> None:
        self.known: list[tuple[dict, str]] = []
        self.tokens = tokens

    async def prepare(self, client: Client) -> None:
        """Asks every question of every model alone."""
        reader, writer = await client.connect()
        writer.write(f"GET /v1/models HTTP/1.1\r\nhost: {client.host}\r\nconnection: close\r\n\r\n".encode())
        models = [m["id"] for m in json.loads((await reader.read()).partition(b"\r\n\r\n")[2])["data"]]
        writer.close()
        for model in models:
            for seed, question in enumerate(QUESTIONS):
                request = {"model": model, "messages": [{"role": "user", "content": question}], "seed": seed,
                           "max_tokens": self.tokens}
                self.known.append((request, await client.stream(request, None)))
        print(f"{len(self.known)} answers of {', '.join(models)} to compare with", flush=True)

    def request(self, dice: random.Random) -> tuple[dict, str]:
        """One of the requests, and its answer."""
        return dice.choice(self.known)


async def good(client: Client, work: Fake | Real, figures: Figures, seed: int, end: float) -> None:
    """Asks, compares, and asks again."""
    dice = random.Random(seed)
    while time.monotonic() < end:
        request, expected = work.request(dice)
        while isinstance(answer := await client.turn(request, figures), int):
            figures.outcomes["told to come back"] += 1
            await asyncio.sleep(min(answer, 5) * dice.random())
        assert answer == expected, f"{request}\n{answer!r}\n{expected!r}"
        figures.outcomes["streams as they must be"] += 1


async def vanish(client: Client, work: Fake | Real, dice: random.Random) -> str:
    """Goes away in the middle of an answer."""
    reader, writer = await client.connect()
    body = json.dumps(work.request(dice)[0] | {"stream": True}).encode()
    writer.write(client.head(len(body)) + body)
    await asyncio.wait_for(reader.read(dice.randrange(1, 600)), 60)
    writer.transport.abort()
    return "vanished"


async def read_slowly(client: Client, work: Fake | Real, dice: random.Random) -> str:
    """Reads a piece now and then."""
    request, expected = work.request(dice)
    answer = await client.stream(request, None, pause=0.1)
    assert isinstance(answer, int) or answer == expected, answer
    return "read slowly"


async def half_a_body(client: Client, *_) -> str:
    """Announces more than it sends."""
    _, writer = await client.connect()
    writer.write(client.head(1000) + b'{"model": "fa')
    await asyncio.sleep(0.5)
    writer.transport.abort()
    return "half a body"


async def huge_body(client: Client, *_) -> str:
    """Sends a gigabyte, or tries to."""
    reader, writer = await client.connect()
    writer.write(client.head(10**9))
    answer = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
    try:
        for _ in range(1000):
            if answer.done():
                break
            writer.write(b" " * 10**6)
            await asyncio.wait_for(writer.drain(), 20)
    except ConnectionError:
        # The server has read enough of it.
        pass
    status = int((await asyncio.wait_for(answer, 20)).split(b" ", 2)[1])
    if status == 503 and client.crowded:
        return "turned away"
    assert status == 413, status
    writer.transport.abort()
    return "1 GB refused"


async def nonsense(client: Client, _, dice: random.Random) -> str:
    """Deep JSON, and text that is none."""
    body = dice.choice([b"[" * 200_000, b'{"model": "\xff\xfe"}', b'{"messages":' + b'[{"a":' * 50_000, b"\x00" * 100])
    status, _ = await client.post(body)
    if status == 503 and client.crowded:
        return "turned away"
    assert status == 400, status
    return "nonsense refused"


async def crowd(client: Client, *_) -> str:
    """Opens many connections and says nothing."""
    count = 1500
    opened = await asyncio.gather(*(client.connect() for _ in range(count)), return_exceptions=True)
    await asyncio.sleep(0.5)
    for one in opened:
        if not isinstance(one, BaseException):
            one[1].transport.abort()
    return f"crowds of {count}"


async def bad(client: Client, work: Fake | Real, figures: Figures, seed: int, end: float, kinds: list, every: float) -> None:
    """Does harm again and again."""
    dice = random.Random(seed)
    while time.monotonic() < end:
        kind = dice.choice(kinds)
        try:
            figures.outcomes[await kind(client, work, dice)] += 1
        except (ConnectionError, asyncio.IncompleteReadError):
            # In a crowd there may be no place even for bad ones.
            figures.outcomes["turned away"] += 1
        await asyncio.sleep(every * dice.random())


def resident(pid: int) -> float:
    """MB of memory that a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


async def watch(pid: int, figures: Figures, end: float) -> None:
    """Notes the memory every second."""
    while time.monotonic() < end:
        figures.memory.append(resident(pid))
        await asyncio.sleep(1)


def table(name: str, seconds: list[float]) -> str:
    """The percentiles of a list of durations."""
    assert len(seconds) > 1, f"{name}: nothing was measured"
    cuts = statistics.quantiles(seconds, n=100)
    return f"{name}: p50 {cuts[49] * 1e3:.0f} ms, p95 {cuts[94] * 1e3:.0f} ms, p99 {cuts[98] * 1e3:.0f} ms ({len(seconds)})"


async def drive(address: str, pid: int, args: argparse.Namespace) -> None:
    """Runs all clients and prints the figures."""
    client, figures = Client(address), Figures()
    work = Real(args.tokens) if args.real else Fake()
    await work.prepare(client)
    before = resident(pid)
    end = time.monotonic() + args.seconds
    tasks = [good(client, work, figures, seed, end) for seed in range(args.clients)]
    if not args.peaceful:
        kinds = [vanish, read_slowly, half_a_body, nonsense]
        tasks += [bad(client, work, figures, 1000 + i, end, kinds, 2.0) for i in range(4)]
        tasks += [bad(client, work, figures, 2000, end, [huge_body], 60.0)]
        client.crowded = not args.no_crowds
        if client.crowded:
            tasks += [bad(client, work, figures, 3000, end, [crowd], 60.0)]
    await asyncio.gather(watch(pid, figures, end), *tasks)
    print(table("first token", figures.first))
    print(table("each token", figures.each))
    pieces = len(figures.first) + len(figures.each)
    print(f"{pieces} pieces in {args.seconds} s to {args.clients} clients: {pieces / args.seconds:.0f} a second")
    print(", ".join(f"{count} {what}" for what, count in sorted(figures.outcomes.items())))
    quarter = max(1, len(figures.memory) // 4)
    early, late = statistics.median(figures.memory[quarter:2 * quarter]), statistics.median(figures.memory[-quarter:])
    print(f"memory: {before:.0f} MB before, {early:.0f} MB in the second quarter, {late:.0f} MB in the last, "
          f"{max(figures.memory):.0f} MB at most")
    assert late < 1.1 * early + 8, "the memory grows"


def main() -> None:
    """Starts the server and drives it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32, help="of a real model's answer")
    parser.add_argument("--real", action="store_true", help="the server has a model")
    parser.add_argument("--peaceful", action="store_true", help="good clients only")
    parser.add_argument("--no-crowds", action="store_true", help="nobody takes all places now and then")
    parser.add_argument("command", nargs="+", help="starts the server, with --port 0")
    args = parser.parse_args()
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    with running(args.command) as (address, process):
        asyncio.run(drive(address, process.pid, args))


if __name__ == "__main__":
    main()
