#!/usr/bin/env python3
"""Measures the crates and their peers, and merges the result into `benches/figures.json`.

    benches/all.py                     every part but `pingora`: some half an hour on two idle cores
    benches/all.py layers serve        these parts only
    benches/all.py layers --only circuit recloser
                                       only the cases with one of these words in their names (layers, times, threads)
    benches/all.py --no-time           the parts that count instructions, which other work on the machine does not disturb

A part is written as soon as it is measured, so an interrupted run keeps what it has. A part that is measured in full
replaces its rows; with `--only` the measured rows are replaced and the others stay. Each row names its run: date, machine,
versions and command. `.ci/figures --fill` then brings the figures into the READMEs.

Python 3 (standard library only), and valgrind for instruction counts. Loopback only, bounded in calls and time.
"""

import argparse
import json
import os
import pathlib
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True  # of the modules beside this script
import callgrind  # noqa: E402
import contention  # noqa: E402
import layers  # noqa: E402

FIGURES = callgrind.BENCHES / "figures.json"
WORKSPACE = callgrind.BENCHES.parent / "Cargo.toml"
# Longer than any of the other programs takes.
SECONDS = 1800

# === Measurements: each yields (row, values)


def programs(folder, with_pingora=False):
    binaries = callgrind.build(WORKSPACE, "layers", "stack")
    binaries["peers"] = callgrind.build_peers(with_pingora)
    return [layers.Program(path, whose, folder) for whose, path in binaries.items()]


def counted(words, with_pingora=False):
    with tempfile.TemporaryDirectory() as folder:
        for job, program, case, bare in layers.wanted(programs(pathlib.Path(folder), with_pingora), words):
            counts, base = program.count(case), program.count(bare)
            if case == bare:
                yield case, {"job": job, "gross": True, "instructions": round(counts[0]), "allocations": one(counts[1])}
            else:
                net, allocations = (mine - none for mine, none in zip(counts, base))
                yield case, {"job": job, "instructions": round(net), "allocations": one(allocations)}


def timed(words):
    """Nanoseconds net of the bare service, in rounds: what disturbs a case disturbs the bare service beside it."""
    with tempfile.TemporaryDirectory() as folder:
        for _, program, case, bare in layers.wanted(programs(pathlib.Path(folder)), words):
            # A change of a balance is no call, and too slow for a loop of so many rounds.
            if case == bare or "-change" in case:
                continue
            net = [program.nanoseconds(case) - program.nanoseconds(bare) for _ in range(layers.ROUNDS)]
            yield case, {"ns": spread(net, 1)}


def contended(words):
    binaries = [callgrind.build(WORKSPACE, "layers")["layers"], callgrind.build_peers(False)]
    for case, rounds in contention.measured(binaries, words).items():
        alone, both = (statistics.median(values) for values in zip(*rounds))
        ratio = spread([two / one for one, two in rounds], 2)
        yield case, {"one": round(alone, 2), "two": round(both, 2), "ratio": ratio}


def table(command, names, key=1):
    """The rows of the Markdown table that a program prints; the first `key` cells name the row, the others are `names`."""

    def measure(_words):
        words = [sys.executable, str(callgrind.BENCHES / command[0]), *command[1:]] if command[0].endswith(".py") else command
        printed = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=SECONDS).stdout
        rows = [line for line in printed.splitlines() if line.startswith("|")][2:]
        if not rows:
            raise ValueError(f"{' '.join(command)} printed no table")
        for line in rows:
            cells = [cell.strip() for cell in line.split("|")[1:-1]]
            row = ", ".join(cell for cell in cells[:key] if cell)
            yield row, {name: number(cell) for name, cell in zip(names, cells[key:], strict=True) if cell}

    return measure


def number(cell):
    """`1,234`, or `1.5 (1.2–1.8)` as [1.5, 1.2, 1.8]."""
    values = [float(text) if "." in text else int(text) for text in re.findall(r"-?\d+(?:\.\d+)?", cell.replace(",", ""))]
    if len(values) not in (1, 3):
        raise ValueError(f"{cell!r} is not a figure")
    return values[0] if len(values) == 1 else values


def spread(values, digits):
    return [round(value, digits) for value in (statistics.median(values), min(values), max(values))]


def one(value):
    return round(value, 1) + 0.0  # no -0.0


# === Parts


class Part:
    """A table of figures: its columns with unit and format, and how it is measured."""

    def __init__(self, measure, columns, key="case", time=False, words=False, default=True):
        self.measure, self.columns, self.key = measure, columns, key
        self.time, self.words, self.default = time, words, default


PER_CALL = {"instructions": ("instructions per call", ",.0f"), "allocations": ("allocations per call", ",.1f")}
PER_REQUEST = {
    "instructions": ("instructions per request", ",.0f"),
    "allocations": ("allocations per request", ",.1f"),
    "ratio": ("÷ floor", ".2f"),
}
SERVE = {
    "request_instructions": ("instructions per request", ",.0f"),
    "request_allocations": ("allocations per request", ",.1f"),
    "connection_instructions": ("instructions per connection", ",.0f"),
    "connection_allocations": ("allocations per connection", ",.1f"),
}
GATEWAY_TIME = {
    "per_second": ("requests/s", ",.0f"),
    "p50": ("p50, µs", ",.0f"),
    "p99": ("p99, µs", ",.0f"),
    "cpu": ("CPU seconds per 100,000 requests", ".2f"),
    "ratio": ("CPU ÷ floor", ".2f"),
}
SERVE_TIME = {
    "per_second": ("requests/s", ",.0f"),
    "cpu": ("CPU seconds per 100,000 requests", ".2f"),
    "first_byte": ("connect to first byte, µs", ",.0f"),
}
LEAVE = {
    "instructions": ("instructions per idle connection", ",.0f"),
    "allocations": ("allocations per idle connection", ",.1f"),
}
BALANCE = {
    "line": ("a cache line, ns", ",.2f"),
    "one": ("one thread, M calls/s", ",.2f"),
    "two": ("two threads, M calls/s", ",.2f"),
    "ratio": ("two ÷ one", ".2f"),
    "ratio_between": ("two ÷ one, 1 µs between calls", ".2f"),
    "change": ("one endpoint out and in, µs", ",.2f"),
    "bytes": ("bytes per endpoint", ",.0f"),
}
THREADS = {
    "one": ("one thread, M calls/s", ",.2f"),
    "two": ("two threads, M calls/s", ",.2f"),
    "ratio": ("two ÷ one", ".2f"),
}
BALANCE_COMMAND = ["cargo", "run", "--quiet", "--release", "-p", "tower-benches", "--bin", "balance"]

PARTS = {
    "layers": Part(counted, PER_CALL, words=True),
    "times": Part(timed, {"ns": ("ns per call", ",.1f")}, time=True, words=True),
    "threads": Part(contended, THREADS, time=True, words=True),
    "serve": Part(table(["serve.py"], list(SERVE)), SERVE, key="server"),
    "leave": Part(table(["serve.py", "--leave"], list(LEAVE)), LEAVE, key="server"),
    "serve-time": Part(table(["serve.py", "--time"], list(SERVE_TIME)), SERVE_TIME, key="server", time=True),
    "gateway": Part(table(["gateway.py"], list(PER_REQUEST)), PER_REQUEST, key="proxy"),
    "gateway-h2": Part(table(["gateway.py", "--h2"], list(PER_REQUEST)), PER_REQUEST, key="proxy"),
    "gateway-time": Part(table(["gateway.py", "--time"], list(GATEWAY_TIME)), GATEWAY_TIME, key="proxy", time=True),
    "balance": Part(table(BALANCE_COMMAND, list(BALANCE), key=2), BALANCE, key="policy, endpoints", time=True),
    # Needs cmake to build.
    "pingora": Part(lambda _words: counted(["pingora"], with_pingora=True), PER_CALL, default=False),
}

# === The file


def merge(figures, name, rows, run, in_full):
    """Puts measured rows into the figures, with their run, and drops runs that no row names any more."""
    part = figures["parts"].setdefault(name, {})
    part["key"] = PARTS[name].key
    part["columns"] = {column: {"unit": unit, "form": form} for column, (unit, form) in PARTS[name].columns.items()}
    key = f"{run['date']} {run['command']}"
    figures["runs"][key] = run
    measured = {row: {**values, "run": key} for row, values in rows}
    part["rows"] = measured if in_full else part.get("rows", {}) | measured
    used = {row["run"] for part in figures["parts"].values() for row in part["rows"].values()}
    figures["runs"] = {key: run for key, run in figures["runs"].items() if key in used}


def written(figures):
    """The file's text: a run, a column and a row has a line each, so that a difference reads as a table."""

    def block(entries, indent):
        pad = " " * indent
        return ",\n".join(f"{pad}{json.dumps(k, ensure_ascii=False)}: {json.dumps(v, ensure_ascii=False)}" for k, v in entries.items())

    parts = ",\n".join(
        f'    "{name}": {{\n      "key": {json.dumps(part["key"])},\n'
        f'      "columns": {{\n{block(part["columns"], 8)}\n      }},\n      "rows": {{\n{block(part["rows"], 8)}\n      }}\n    }}'
        for name, part in figures["parts"].items()
    )
    return f'{{\n  "runs": {{\n{block(figures["runs"], 4)}\n  }},\n  "parts": {{\n{parts}\n  }}\n}}\n'


def machine():
    """What the figures depend on. A line that a system does not have is left out."""

    def output(*words):
        return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout

    model, memory = None, None
    if os.path.exists("/proc/cpuinfo"):
        model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
        memory = re.search(r"MemTotal: +(\d+)", pathlib.Path("/proc/meminfo").read_text())
    facts = [f"{os.cpu_count()} cores of {model.group(1) if model else platform.processor() or platform.machine()}"]
    if memory:
        facts.append(f"{round(int(memory.group(1)) / 2**20)} GiB")
    facts.append(f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}")
    facts.append(f"rustc {output('rustc', '--version').split()[1]}")
    if shutil.which("valgrind"):
        facts.append(output("valgrind", "--version").strip().replace("-", " "))
    return ", ".join(facts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all but pingora)")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases with one of these words in their names")
    parser.add_argument("--no-time", action="store_true", help="leave out the parts that take time, which other work disturbs")
    parser.add_argument("--note", help="what else to know of this run: how busy the machine was, what ran before")
    parser.add_argument("--out", type=pathlib.Path, default=FIGURES, help="the file to merge into (benches/figures.json)")
    args = parser.parse_args()
    unknown = [name for name in args.parts if name not in PARTS]
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    names = args.parts or [name for name, part in PARTS.items() if part.default]
    names = [name for name in names if not (args.no_time and PARTS[name].time)]
    if args.only and not all(PARTS[name].words for name in names):
        parser.error("--only needs parts with cases: layers, times, threads")
    if any(not PARTS[name].time for name in names):
        callgrind.command("")  # exits when valgrind is missing, before anything is built

    today, host = subprocess.run(["date", "+%F"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip(), machine()
    failed = []
    for name in names:
        command = " ".join(["benches/all.py", name, *(["--only", *args.only] if args.only else [])])
        run = {"date": today, "machine": host, "command": command} | ({"note": args.note} if args.note else {})
        try:
            rows = list(PARTS[name].measure(args.only))
            if not rows:
                raise ValueError("nothing was measured")
        except (OSError, ValueError, subprocess.SubprocessError, SystemExit) as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr)
            continue
        for row, values in rows:
            print(name, row, values, flush=True)
        # Read anew: another run may have written meanwhile.
        figures = json.loads(args.out.read_text()) if args.out.exists() else {"runs": {}, "parts": {}}
        merge(figures, name, rows, run, in_full=not args.only)
        args.out.write_text(written(figures))
    if failed:
        sys.exit(f"not measured, and left as they were: {', '.join(failed)}")


if __name__ == "__main__":
    main()
