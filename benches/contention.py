#!/usr/bin/env python3
"""What threads that share one layer do to each other: calls a second of one thread and of two.

    benches/contention.py               the layers of this workspace and their peers
    benches/contention.py circuit       only what has this in its name

Every case runs once in each round, with one thread and with two, one after the other, so that what else the machine is
doing meets them all alike. The table has medians over the rounds, and the ratio's lowest and highest. All threads call
clones of one service, made before. A layer that costs its callers nothing but their own time has a ratio of about two, as
the bare service; one whose callers only wait for each other has one, and less if waiting costs as well.
"""

import argparse
import statistics
import subprocess
import sys

sys.dont_write_bytecode = True  # of the module beside this script
import callgrind  # noqa: E402

CALLS, ROUNDS = 2_000_000, 9
# Wakes another thread for each call, and sleeps until it is woken.
FEWER_CALLS = {"tower-rate-buffer": 100_000}
THREADS = (1, 2)
# Longer than any case takes.
CASE_SECONDS = 120


def run(path, case, threads):
    """Millions of calls a second, of all threads together."""
    calls = FEWER_CALLS.get(case, CALLS) // threads
    words = [path, case, str(calls), str(threads)]
    took = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=CASE_SECONDS).stdout
    return calls * threads / int(took) * 1e3


def measured(binaries, words):
    """The rounds of each case with one of the words in its name: calls a second with one thread and with two."""
    rows = {}
    for path in binaries:
        listed = subprocess.run([path, "--contended"], stdout=subprocess.PIPE, text=True, check=True).stdout
        for case in listed.split():
            if not words or any(word in case for word in words):
                rows[path, case] = []
    for _ in range(ROUNDS):
        for path, case in rows:
            rows[path, case].append([run(path, case, threads) for threads in THREADS])
    return {case: rounds for (_, case), rounds in rows.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("only", nargs="*", help="words in the names of the cases to run (all)")
    parser.add_argument("--pingora", action="store_true", help="and pingora's load balancer, which needs cmake to build")
    args = parser.parse_args()
    binaries = [
        callgrind.build(callgrind.BENCHES.parent / "Cargo.toml", "layers")["layers"],
        callgrind.build_peers(args.pingora),
    ]
    print("| case | one thread, M calls/s | two threads | two ÷ one |\n|---|---|---|---|")
    for case, rounds in measured(binaries, args.only).items():
        one, two = (statistics.median(values) for values in zip(*rounds))
        ratios = sorted(two / one for one, two in rounds)
        middle = statistics.median(ratios)
        print(f"| {case} | {one:.2f} | {two:.2f} | {middle:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) |")


if __name__ == "__main__":
    main()
