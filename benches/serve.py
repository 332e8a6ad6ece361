#!/usr/bin/env python3
"""What a server costs: tower-drain with all its limits, axum::serve and hyper-util, on the same app in one run.

    benches/serve.py              instructions and allocations, a kept request and a connection, by callgrind
    benches/serve.py --leave      the same of an idle connection when the server leaves
    benches/serve.py --time       requests a second, and microseconds from connect to the first byte, in rounds

Python 3, standard library only. Instruction counts need valgrind. Loopback only, bounded in requests and time.
"""

import argparse
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True  # of the modules beside this script
import callgrind  # noqa: E402
from gateway import Server, spread  # noqa: E402

KINDS = ["hyper", "axum", "drain", "drain-layered"]
IDLE = 500
KEPT = b"GET / HTTP/1.1\r\nhost: bench\r\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n"


def start(binaries, kind, before=(), env=None):
    return Server([*before, binaries["serve"], kind], r"^listening on (\S+)", env)


def load(binaries, server, requests, connections):
    words = [binaries["load"], "--addr", server.address, "--requests", str(requests), "--connections", str(connections)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"requests failed, so the numbers would mean nothing:\n{done.stdout}")
    return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())


def fresh(server, count):
    """Microseconds from connect to the first byte, of one connection after the other."""
    host, port = server.address.rsplit(":", 1)
    micros = []
    for _ in range(count):
        begin = time.perf_counter_ns()
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(REQUEST)
            if not client.recv(1):
                sys.exit("no answer, so the numbers would mean nothing")
            micros.append((time.perf_counter_ns() - begin) / 1000)
            while client.recv(4096):
                pass
    return statistics.median(micros)


def count(binaries, folder):
    print("| server | instructions a request | allocations a request | instructions a connection | allocations a connection |")
    print("|---|---|---|---|---|")

    def run(kind, requests, connections):
        out = folder / f"callgrind.{kind}.{requests}.{connections}"
        with start(binaries, kind, callgrind.command(out), callgrind.one_worker()) as server:
            load(binaries, server, requests, 8)
            fresh(server, connections)
            time.sleep(1.5)  # Connections that linger end.
        return callgrind.read(out)

    for kind in KINDS:
        few, many, more = run(kind, 500, 50), run(kind, 2500, 50), run(kind, 500, 550)
        request = [(b - a) / 2000 for a, b in zip(few, many)]
        connection = [(b - a) / 500 for a, b in zip(few, more)]
        print(f"| {kind} | {request[0]:,.0f} | {request[1]:.1f} | {connection[0]:,.0f} | {connection[1]:.1f} |")


def leave(binaries, folder):
    print("| server | instructions an idle connection | allocations |\n|---|---|---|")

    def run(kind, open_at_the_end):
        out = folder / f"callgrind.{kind}.{open_at_the_end}"
        with start(binaries, kind, callgrind.command(out), callgrind.one_worker()) as server:
            clients = [idle(server) for _ in range(IDLE)]
            if not open_at_the_end:
                end(clients)
                time.sleep(1.5)  # The server sees them go.
            server.process.terminate()
            if open_at_the_end:
                hear_out(clients)
        return callgrind.read(out)

    # hyper's documentation has no graceful shutdown; axum's server has it.
    for kind in ["axum", "drain"]:
        gone, told = run(kind, False), run(kind, True)
        instructions, allocations = [(b - a) / IDLE for a, b in zip(gone, told)]
        print(f"| {kind} | {instructions:,.0f} | {allocations:.1f} |")


def idle(server):
    host, port = server.address.rsplit(":", 1)
    client = socket.create_connection((host, int(port)), timeout=20)
    client.sendall(KEPT)
    if not client.recv(4096).startswith(b"HTTP/1.1 200"):
        sys.exit("no answer, so the numbers would mean nothing")
    return client


def end(clients):
    for client in clients:
        client.shutdown(socket.SHUT_WR)
    hear_out(clients)


def hear_out(clients):
    for client in clients:
        while client.recv(4096):
            pass
        client.close()


def timed(binaries, rounds):
    rows = {kind: [] for kind in KINDS}
    servers = {}
    try:
        for kind in KINDS:
            servers[kind] = start(binaries, kind)
            load(binaries, servers[kind], 5000, 64)
        for turn in range(rounds):
            for kind in KINDS if turn % 2 == 0 else reversed(KINDS):
                begin = servers[kind].cpu_seconds()
                told = load(binaries, servers[kind], 60_000, 64)
                cpu = (servers[kind].cpu_seconds() - begin) * 100_000 / 60_000
                rows[kind].append((float(told["per_second"]), cpu, fresh(servers[kind], 500)))
    finally:
        for server in servers.values():
            server.end()
    print("| server | requests/s | CPU s/100k requests | connect to first byte, µs |\n|---|---|---|---|")
    for kind, results in rows.items():
        rate, cpu, micros = zip(*results)
        print(f"| {kind} | {spread(rate, ',.0f')} | {spread(cpu, '.2f')} | {spread(micros, '.0f')} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leave", action="store_true", help="what leaving costs")
    parser.add_argument("--time", action="store_true", help="time instead of instructions")
    parser.add_argument("--repeat", type=int, default=5, help="rounds with --time (5)")
    args = parser.parse_args()
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("gave up after 300 seconds"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    binaries = callgrind.build(callgrind.BENCHES.parent / "Cargo.toml", "load", "serve")
    signal.alarm(300)
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        timed(binaries, args.repeat) if args.time else leave(binaries, folder) if args.leave else count(binaries, folder)


if __name__ == "__main__":
    main()
