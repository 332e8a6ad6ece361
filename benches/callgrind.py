"""Runs a program under callgrind and reads what it counted. Python 3, standard library only."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

BENCHES = pathlib.Path(__file__).resolve().parent

# The C allocator's own doors. Rust's global allocator calls these, and callgrind counts the calls.
ALLOCATE = {"malloc", "calloc", "realloc", "posix_memalign", "aligned_alloc", "memalign"}


def command(out, within=None):
    """The words before a program's own that make callgrind write its counts to `out`.

    `within` is a pattern of function names: only what happens inside of them is counted.
    """
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is missing: apt-get install valgrind")
    words = ["valgrind", "--quiet", "--tool=callgrind", f"--callgrind-out-file={out}"]
    return words + ([f"--toggle-collect={within}"] if within else [])


def read(out):
    """Instructions and allocations of a whole run."""
    instructions, allocations = None, 0
    names, callee = {}, None
    with open(out) as lines:
        for line in lines:
            if line.startswith("cfn="):
                callee = name(names, line[4:])
            elif line.startswith("calls="):
                if callee in ALLOCATE:
                    allocations += int(line[6:].split()[0])
            elif line.startswith("fn="):
                name(names, line[3:])
            elif line.startswith(("summary:", "totals:")):
                instructions = int(line.split()[1])
    if instructions is None:
        sys.exit(f"{out}: no totals; did the program end by itself?")
    return instructions, allocations


def name(names, text):
    """A function's name. It is written out once, `(id) name`, and is `(id)` from then on."""
    number, text = re.match(r"\((\d+)\)\s*(.*)", text).groups()
    if text:
        # A recursive call is counted under `name'2`, a versioned symbol under `name@VERSION`.
        names[number] = re.split("['@]", text)[0]
    return names[number]


def build(manifest, *bins, features=()):
    """Builds these release binaries and says where each is."""
    words = ["cargo", "build", "--release", "--message-format=json-render-diagnostics", "--manifest-path", str(manifest)]
    for name in bins:
        words += ["--bin", name]
    if features:
        words += ["--features", ",".join(features)]
    built = subprocess.run(words, stdout=subprocess.PIPE, check=False)
    if built.returncode != 0:
        sys.exit(f"could not build {', '.join(bins)}")
    messages = map(json.loads, built.stdout.splitlines())
    return {message["target"]["name"]: message["executable"] for message in messages if message.get("executable")}


def build_peers(with_pingora):
    """The peers' binary, which is a workspace of its own."""
    features = ["pingora"] if with_pingora else []
    return build(BENCHES / "peers" / "Cargo.toml", "peers", features=features)["peers"]


def one_worker():
    """The environment of a counted program: work is not stolen between threads."""
    return os.environ | {"TOKIO_WORKER_THREADS": "1"}
