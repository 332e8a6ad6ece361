#!/usr/bin/env python3
"""Every comparison of the crates with their peers, in one run and one table.

    benches/all.py                  everything: some ten minutes on two cores
    benches/all.py --no-time        instructions and allocations only, which no other work on the machine disturbs

A row is one case: what a call, a request or a connection costs, net of the service that does nothing where there is one
(`layers.py`), beside the minimal proxy (`gateway.py`) and other servers (`serve.py`), and what two threads get done
compared with one (`contention.py`). Each of those programs tells more about its own part; so does
`cargo run --release -p tower-benches --bin balance` about what no instruction count shows. Python 3 (standard library
only) and valgrind; loopback only, bounded in calls and time.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True  # of the modules beside this script
import callgrind  # noqa: E402
import contention  # noqa: E402
import layers  # noqa: E402

HEAD = "| job | case | instructions | allocations | ns | two threads ÷ one |\n|---|---|---|---|---|---|"
# Of two threads; `contention.py` has more, and tells how far they lie apart.
ROUNDS = 3
# Longer than any of the other programs takes.
SECONDS = 900


def row(job, case, *cells):
    print(f"| {' | '.join([job, case, *cells])} |", flush=True)


def calls(binaries, folder, with_time):
    programs = [layers.Program(path, whose, folder) for whose, path in binaries.items()]
    for job, program, case, bare in layers.wanted(programs, []):
        counts, base = program.count(case), program.count(bare)
        if case == bare:
            row(job, case, f"({counts[0]:,.0f})", f"({counts[1]:.1f})", "", threads(program.path, case, with_time))
            continue
        net, allocations = (mine - none for mine, none in zip(counts, base))
        row(job, case, f"{net:,.0f}", f"{allocations:.1f}", *times(program, case, bare, with_time))


def times(program, case, bare, with_time):
    """Nanoseconds net of the bare service, and the ratio of two threads to one, of medians over rounds."""
    # A change of a balance is no call: there are too many of them in a loop that is timed.
    if not with_time or "-change" in case:
        return "", ""
    rounds = range(layers.ROUNDS)
    net = statistics.median(program.nanoseconds(case) - program.nanoseconds(bare) for _ in rounds)
    return f"{net:.1f}", threads(program.path, case, with_time)


def threads(path, case, with_time):
    if not with_time or case not in contended(path):
        return ""
    rounds = [[contention.run(path, case, count) for count in contention.THREADS] for _ in range(ROUNDS)]
    return f"{statistics.median(two / one for one, two in rounds):.2f}"


def contended(path, known={}):
    if path not in known:
        listed = subprocess.run([path, "--contended"], stdout=subprocess.PIPE, text=True, check=True).stdout
        known[path] = listed.split()
    return known[path]


def program(name, *parts):
    """The rows of another program's table: for each of the parts, a job and the two columns of it that are ours."""
    words = [sys.executable, str(callgrind.BENCHES / name)]
    table = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=SECONDS).stdout
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    for job, instructions, allocations in parts:
        for cells in rows:
            row(job, cells[0], cells[instructions], cells[allocations], "", "")


def machine():
    rustc = subprocess.run(["rustc", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.split()[1]
    valgrind = subprocess.run(["valgrind", "--version"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    model = re.search(r"model name\s*: (.*)", pathlib.Path("/proc/cpuinfo").read_text())
    day = subprocess.run(["date", "+%F"], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    cores = len(re.findall(r"^processor", pathlib.Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    return f"{day}, {cores} cores of {model.group(1) if model else 'an unknown processor'}, rustc {rustc}, {valgrind}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-time", action="store_true", help="leave out what takes time, and is disturbed by other work")
    args = parser.parse_args()
    binaries = callgrind.build(callgrind.BENCHES.parent / "Cargo.toml", "layers", "stack")
    binaries["peers"] = callgrind.build_peers(False)
    print(f"Measured on {machine()}.\n\n{HEAD}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        calls(binaries, pathlib.Path(folder), not args.no_time)
    program("serve.py", ("server, a request", 1, 2), ("server, a connection", 3, 4))
    program("gateway.py", ("proxy, a request", 1, 2))


if __name__ == "__main__":
    main()
