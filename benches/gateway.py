#!/usr/bin/env python3
"""What a request through the whole gateway costs, beside the minimal hyper proxy, in one run.

    benches/gateway.py              instructions and allocations a request, by callgrind
    benches/gateway.py --time       requests a second and CPU seconds, interleaved in rounds

Python 3, standard library only. Instruction counts need valgrind. Everything runs on this machine's loopback interface,
every run is bounded in requests and in time, and what was started is ended by its process id. The result is one
Markdown table.

An instruction count is a difference: the same run with few and with many requests, so that starting, connecting and
ending cancel out. It counts user space only; system calls are the kernel's and are not in it.
"""

import argparse
import os
import pathlib
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading

sys.dont_write_bytecode = True  # of the module beside this script
import callgrind  # noqa: E402

GATEWAY = """\
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
[[backend]]
name = "b1"
address = "{backend}"
[per_client]
rate = 1000000
per = "second"
burst = 1000000
[drain]
announce = "0s"
"""


class Server:
    """A program that prints where it listens and ends on SIGTERM."""

    def __init__(self, words, says, env=None):
        self.words = words
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env)
        self.lines = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()
        try:
            self.address = self.find(re.compile(says))
        except BaseException:
            self.end()
            raise

    def listen(self):
        # To the end of the stream, so that the program never waits for a reader.
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def find(self, says):
        while True:
            try:
                line = self.lines.get(timeout=60)
            except queue.Empty:
                sys.exit(f"{self.words[0]} did not say where it listens")
            if line is None:
                sys.exit(f"{' '.join(self.words)} ended before it listened")
            if found := says.search(line):
                return found.group(1)

    def cpu_seconds(self):
        # Fields 14 and 15 of the whole line; the program's name, in brackets, may have spaces in it.
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def end(self):
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            sys.exit(f"{self.words[0]} did not end on SIGTERM")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()


class Bench:
    def __init__(self, args, binaries, folder):
        self.args, self.binaries, self.folder = args, binaries, folder

    def backend(self):
        return Server([self.binaries["backend"]], r"^listening on (\S+)")

    def proxy(self, name, backend, before=(), env=None):
        if name == "floor":
            return Server([*before, self.binaries["floor"], backend.address], r"^listening on (\S+)", env)
        config = self.folder / "gateway.toml"
        config.write_text(GATEWAY.format(backend=backend.address))
        words = [*before, self.binaries["gateway"], "--config", str(config)]
        return Server(words, r"^gateway listening on http://(\S+)", env)

    def load(self, proxy, requests, connections):
        words = [self.binaries["load"], "--addr", proxy.address, "--requests", str(requests)]
        words += ["--connections", str(connections)]
        words += ["--h2", "--streams", str(self.args.streams)] if self.args.h2 else []
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"requests failed, so the numbers would mean nothing:\n{done.stdout}")
        return dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())

    # Instructions

    def counted(self, name, requests, tag):
        out = self.args.keep / f"callgrind.{name}.{tag}.{requests}"
        with self.backend() as backend:
            with self.proxy(name, backend, callgrind.command(out), callgrind.one_worker()) as proxy:
                # Pools fill, lazy things are made.
                self.load(proxy, 2 * self.args.connections, self.args.connections)
                self.load(proxy, requests, self.args.connections)
        return callgrind.read(out)

    def count(self, names):
        few, many = self.args.requests
        results = {name: [] for name in names}
        for tag in range(self.args.repeat):
            for name in names:
                begin, end = self.counted(name, few, tag), self.counted(name, many, tag)
                results[name].append([(b - a) / (many - few) for a, b in zip(begin, end)])
        floor = statistics.median(row[0] for row in results.get("floor", [[float("nan")]]))
        print("| proxy | instructions a request | allocations a request | ÷ floor |\n|---|---|---|---|")
        for name, rows in results.items():
            instructions, allocations = zip(*rows)
            ratio = statistics.median(instructions) / floor
            print(f"| {name} | {spread(instructions, ',.0f')} | {spread(allocations, '.1f')} | {ratio:.2f} |")

    # Time

    def time(self, names):
        proxies, results = {}, {name: [] for name in names}
        with self.backend() as backend:
            try:
                for name in names:
                    proxies[name] = self.proxy(name, backend)
                    self.load(proxies[name], self.args.requests[-1] // 10, self.args.connections)
                for turn in range(self.args.repeat):
                    # Whoever goes first in one round goes last in the next.
                    for name in names if turn % 2 == 0 else reversed(names):
                        results[name].append(self.timed(proxies[name]))
            finally:
                for proxy in proxies.values():
                    proxy.end()
        print("| proxy | requests/s | p50 µs | p99 µs | CPU s/100k requests | CPU ÷ floor |\n|---|---|---|---|---|---|")
        for name, rows in results.items():
            rate, p50, p99, cpu = zip(*rows)
            # Of the same round: what disturbs one, disturbs the other.
            ratios = [mine / floor[3] for mine, floor in zip(cpu, results.get("floor", []))]
            cells = [spread(rate, ",.0f"), spread(p50, ".0f"), spread(p99, ".0f"), spread(cpu, ".2f")]
            print(f"| {name} | {' | '.join(cells)} | {spread(ratios, '.2f') if ratios else ''} |")

    def timed(self, proxy):
        begin = proxy.cpu_seconds()
        load = self.load(proxy, self.args.requests[-1], self.args.connections)
        cpu = (proxy.cpu_seconds() - begin) * 100_000 / self.args.requests[-1]
        return float(load["per_second"]), float(load["p50_us"]), float(load["p99_us"]), cpu


def spread(values, form):
    """The median, and the lowest and highest where there are several."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({format(min(values), form)}–{format(max(values), form)})"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["floor", "gateway"], help="measure one of the two")
    parser.add_argument("--time", action="store_true", help="time instead of instructions")
    parser.add_argument("--repeat", type=int, help="runs or rounds (1; 5 with --time)")
    parser.add_argument("--requests", type=int, nargs="+", help="few and many (500 2500), or with --time one number (40000)")
    parser.add_argument("--connections", type=int, help="the clients' (8; 64 with --time)")
    parser.add_argument("--h2", action="store_true", help="HTTP/2 without TLS")
    parser.add_argument("--streams", type=int, default=4, help="requests at once on an HTTP/2 connection (4)")
    parser.add_argument("--keep", type=pathlib.Path, help="folder that keeps callgrind's files, for callgrind_annotate")
    parser.add_argument("--limit", type=int, default=300, help="seconds from the end of the build after which it gives up (300)")
    args = parser.parse_args()
    args.repeat = args.repeat or (5 if args.time else 1)
    args.connections = args.connections or (64 if args.time else 8)
    args.requests = args.requests or ([40_000] if args.time else [500, 2_500])
    if not args.time and (len(args.requests) != 2 or args.requests[0] >= args.requests[1]):
        parser.error("an instruction count needs two numbers of requests, the smaller first")
    return args


def main():
    args = arguments()
    names = [args.only] if args.only else ["floor", "gateway"]
    # Both end by way of every `with` and `finally`, so that nothing is left running.
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"gave up after {args.limit} seconds"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    binaries = callgrind.build(callgrind.BENCHES.parent / "Cargo.toml", "backend", "load", *names)
    signal.alarm(args.limit)
    with tempfile.TemporaryDirectory() as folder:
        args.keep = args.keep or pathlib.Path(folder)
        args.keep.mkdir(parents=True, exist_ok=True)
        bench = Bench(args, binaries, pathlib.Path(folder))
        bench.time(names) if args.time else bench.count(names)


if __name__ == "__main__":
    main()
