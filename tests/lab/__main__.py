"""Command line of the lab.

    python -m tests.lab boot SHAPE -o DIR     boot a shape, leave its full core and the guest's report in DIR
    python -m tests.lab bundle [SHAPE...]     rebuild bundled cores in tests/vmcores, default all of them
    python -m tests.lab server NAME -o DIR    boot a whole Debian, leave the same of it, and charges.json, in DIR
    python -m tests.lab pairs [PAIR...]       the same work on eager and lazy kernels: the slabs' difference, predicted
                                              and measured

Needs a Debian machine with qemu-system-x86 and -arm, busybox-static, cpio and e2fsprogs; crash where it is there.
"""

from __future__ import annotations

import argparse
import functools
import logging
import os
import subprocess
import sys
from pathlib import Path

from pipeline.collector.status import CollectError
from tests.lab import boot, bundle, kernels, pairs, server
from tests.lab.bundle import step
from tests.lab.kernels import CACHE, LabError
from tests.lab.pairs import LARGEST, PAIRS
from tests.lab.server import SERVERS
from tests.lab.shapes import BUNDLED, SHAPES, Shape


def main() -> int:
    args = parse()
    # Its warnings speak of debug info that the lab does without.
    logging.getLogger("drgn").setLevel(logging.ERROR)
    args.cache.mkdir(parents=True, exist_ok=True)
    try:
        if args.command == "boot":
            boot.take_core(args.shape, kernel(args.shape.series, args, args.shape.arch), args.output, args.live)
        elif args.command == "server":
            server.examine(SERVERS[args.name], kernel(SERVERS[args.name].series, args), args.output, args.cache)
        elif args.command == "pairs":
            for line in pairs.table(args.pairs or list(PAIRS), functools.cache(lambda series: kernel(series, args))):
                print(line, flush=True)
        else:
            for shape in args.shapes or BUNDLED:
                made = bundle.bundle(shape, kernel(shape.series, args, shape.arch), args.cache)
                size = sum(file.stat().st_size for file in made.rglob("*") if file.is_file())
                step(f"{shape.name}: {size / 1e6:.1f} MB")
    except (LabError, CollectError) as e:
        print(f"lab: {e}", file=sys.stderr)
        return 1
    except FileNotFoundError as e:
        print(f"lab: {e.filename} is missing; `python -m tests.lab -h` says what the lab needs", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as e:
        print(f"lab: {e.cmd[0]} failed with exit code {e.returncode}", file=sys.stderr)
        return 1
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    debs = "folder of .deb files to look for kernels in before the Debian mirror ($LAB_DEBS)"
    parser.add_argument("--debs", type=Path, default=os.environ.get("LAB_DEBS"), metavar="DIR", help=debs)
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help="downloads and unpacked kernels")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("boot")
    one.add_argument("shape", type=shape_named, metavar="SHAPE")
    one.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    one.add_argument("--dwarf", action="store_true", help="also fetch the kernel's vmlinux with DWARF")
    one.add_argument("--live", action="store_true", help="also let the guest audit its own kernel")
    some = commands.add_parser("bundle")
    some.add_argument("shapes", type=shape_named, nargs="*", metavar="SHAPE")
    some.set_defaults(dwarf=True)
    whole = commands.add_parser("server")
    whole.add_argument("name", choices=SERVERS, metavar="NAME", help=", ".join(SERVERS))
    whole.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    whole.set_defaults(dwarf=True)
    both = commands.add_parser("pairs")
    known = [*PAIRS, LARGEST]
    both.add_argument("pairs", nargs="*", metavar="PAIR", help=f"of {', '.join(known)}; default all but the last")
    both.set_defaults(dwarf=False)
    return parser.parse_args()


def shape_named(name: str) -> Shape:
    if name not in SHAPES:
        raise argparse.ArgumentTypeError(f"no shape {name}; there are {', '.join(SHAPES)}")
    return SHAPES[name]


def kernel(series: str, args: argparse.Namespace, arch: str = "amd64") -> kernels.Kernel:
    """The kernel of a series, downloaded and unpacked where it is not yet."""
    packages = kernels.source(series, arch, args.debs, args.cache)
    step(f"the {series} kernel for {arch} of {packages}")
    return kernels.get(series, packages, args.cache, args.dwarf)


if __name__ == "__main__":
    sys.exit(main())
