"""Requests per second and CPU per request by number of connections: one HTTP client with all of them, and clients of 8.

    python benchmarks/bench_connections.py [--requests 2000] [--delay 0.05] [--widths 8 32 128 0]

The server is a process of its own that answers each request after ``--delay`` seconds, any number at once. Width 0 is
found out while asking. CPU is that of this process alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from _common import ROOT, emit

sys.path.insert(0, str(ROOT))

import iclkit.lm._servers._http as http

SERVER = """
import asyncio, sys

BODY = b'{"choices": [{"text": "x", "finish_reason": "stop"}]}'
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(BODY) + BODY

async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\\r\\n")[0]))
            await asyncio.sleep(float(sys.argv[1]))
            writer.write(ANSWER)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--widths", type=int, nargs="+", default=[8, 32, 128, 0])
    a = parser.parse_args()
    with subprocess.Popen([sys.executable, "-c", SERVER, str(a.delay)], text=True, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        url = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        for width in a.widths:
            for way, share in (("one client", 512), ("clients of 8", 8)):
                http._SHARE = share
                client = http.Client(url, None, http.HttpConfig(concurrency=width))
                bodies = [{"prompt": f"{number} " + "word " * 100} for number in range(a.requests)]
                begun, cpu = time.perf_counter(), time.process_time()
                for _ in client.map(lambda body, client=client: client.post("/completions", body), bodies):
                    pass
                seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
                used = width or f"found out: {client.width.found}"
                emit(what="connections", width=used, way=way,
                     requests_per_second=round(a.requests / seconds),
                     cpu_ms=round(1000 * cpu / a.requests, 2))  # fmt: skip
                client.close()
        server.terminate()


if __name__ == "__main__":
    main()
