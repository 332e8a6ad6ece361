#!/usr/bin/env python3
"""What a call through each layer costs when the layer has nothing to do, net of the service that does nothing.

    benches/layers.py               the layers of this workspace
    benches/layers.py --peers       and the crates that do the same job, in the same run
    benches/layers.py --pingora     and pingora's load balancer, which needs cmake
    benches/layers.py circuit       only what has this in its name
    benches/layers.py --time        nanoseconds instead of instructions

Instructions and allocations a call, by callgrind, as one Markdown table. Python 3 (standard library only) and valgrind.
Only the loop is counted, and a count is the difference between a short and a long one, so that beginning and ending
cancel out; the bare service's own count is then taken off. The counts repeat: a second run only shows that.

Callgrind does not see the kernel, and under it reading the clock is the kernel's business. Otherwise it happens in user
space, and shows with --time: CPU time of the same loop, in rounds, each net of the bare service in the same round.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True  # of the module beside this script
import callgrind  # noqa: E402

FEW, MANY = 1_000, 6_000
TIMED_FEW, TIMED_MANY, ROUNDS = 200_000, 2_200_000, 5
# The loops of src/drive.rs. What comes before them is not counted: a clock that calibrates itself takes its time.
LOOPS = "*drive::*calls*"
# Longer than any case takes under callgrind.
CASE_SECONDS = 120


class Program:
    """A binary that names its cases and runs one."""

    def __init__(self, path, whose, folder):
        self.path, self.whose, self.folder = path, whose, folder
        self.counted = {}
        listed = subprocess.run([path, "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout
        self.cases = [line.split("\t") for line in listed.splitlines()]

    def count(self, case):
        """Instructions and allocations a call, the bare service's among them."""
        if case not in self.counted:
            few, many = self.run(case, FEW), self.run(case, MANY)
            self.counted[case] = [(b - a) / (MANY - FEW) for a, b in zip(few, many)]
        return self.counted[case]

    def run(self, case, calls):
        out = self.folder / f"callgrind.{self.whose}.{case.replace('/', '-')}.{calls}"
        words = [*callgrind.command(out, LOOPS), self.path, case, str(calls)]
        subprocess.run(words, env=callgrind.one_worker(), check=True, timeout=CASE_SECONDS)
        return callgrind.read(out)

    def nanoseconds(self, case):
        """CPU time a call, the bare service's included."""
        return (self.cpu(case, TIMED_MANY) - self.cpu(case, TIMED_FEW)) / (TIMED_MANY - TIMED_FEW) * 1e9

    def cpu(self, case, calls):
        process = subprocess.Popen([self.path, case, str(calls)], env=callgrind.one_worker())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            sys.exit(f"{case} failed")
        return used.ru_utime + used.ru_stime


def counted(rows):
    print("| job | case | instructions a call | net of bare | allocations net | bare |\n|---|---|---|---|---|---|")
    for job, program, case, bare in rows:
        counts, base = program.count(case), program.count(bare)
        net, allocations = (mine - none for mine, none in zip(counts, base))
        cells = [job, case, f"{counts[0]:,.0f}"]
        cells += [f"{net:,.0f}", f"{allocations:.1f}", bare] if case != bare else ["", f"({counts[1]:.1f})", ""]
        print(f"| {' | '.join(cells)} |", flush=True)


def timed(rows):
    nets = {}
    for _ in range(ROUNDS):
        bares = {}
        for job, program, case, bare in rows:
            if (program, bare) not in bares:
                bares[program, bare] = program.nanoseconds(bare)
            mine = bares[program, bare] if case == bare else program.nanoseconds(case) - bares[program, bare]
            nets.setdefault((job, case, bare), []).append(mine)
    print("| job | case | ns a call, net of bare | bare |\n|---|---|---|---|")
    for (job, case, bare), values in nets.items():
        spread = f"{statistics.median(values):.1f} ({min(values):.1f}–{max(values):.1f})"
        print(f"| {job} | {case} | {spread} | {bare if case != bare else 'itself'} |")


def wanted(programs, words):
    rows = [(job, program, case, bare) for program in programs for case, bare, job in program.cases]
    # The cases of a job stand together, in the order in which the jobs first come up.
    jobs = list(dict.fromkeys(job for job, *_ in rows))
    rows.sort(key=lambda row: jobs.index(row[0]))
    return [row for row in rows if not words or any(word in row[2] for word in words)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="words in the names of the cases to run (all)")
    parser.add_argument("--peers", action="store_true", help="also the peers, which have a workspace of their own")
    parser.add_argument("--pingora", action="store_true", help="and pingora's load balancer, which needs cmake to build")
    parser.add_argument("--time", action="store_true", help="CPU time instead of instructions")
    parser.add_argument("--keep", type=pathlib.Path, help="folder that keeps callgrind's files, for callgrind_annotate")
    args = parser.parse_args()
    binaries = callgrind.build(callgrind.BENCHES.parent / "Cargo.toml", "layers", "stack")
    if args.peers or args.pingora:
        binaries["peers"] = callgrind.build_peers(args.pingora)
    with tempfile.TemporaryDirectory() as folder:
        folder = args.keep or pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        rows = wanted([Program(path, whose, folder) for whose, path in binaries.items()], args.only)
        timed(rows) if args.time else counted(rows)


if __name__ == "__main__":
    main()
