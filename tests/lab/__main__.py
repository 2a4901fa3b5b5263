"""Command line of the lab.

    python -m tests.lab boot SHAPE -o DIR     boot a shape, write its full core and the guest's report to DIR
    python -m tests.lab bundle [SHAPE...]     rebuild bundled cores in tests/vmcores and tests/kdumps, by default all
    python -m tests.lab server NAME -o DIR    boot a complete Debian, write the same files and charges.json to DIR
    python -m tests.lab pairs [PAIR...]       run the same work on eager and lazy kernels, print what the lazy ones
                                              give back, predicted and measured
    python -m tests.lab target-kernel NAME    print the data file of a kernel to upgrade to, such as 6.12
                                              (pipeline/collector/model/v6_12.py), from Debian's build of it

Needs a Debian machine with qemu-system-x86, -arm, -ppc and -misc, busybox-static, cpio, e2fsprogs and kexec-tools; uses
crash if installed.
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
from tests.lab import boot, bundle, kdump, kernels, pairs, server, target_kernels
from tests.lab.bundle import step
from tests.lab.kernels import CACHE, LabError
from tests.lab.pairs import LARGEST, PAIRS
from tests.lab.server import SERVERS
from tests.lab.shapes import BUNDLED_SHAPES, SHAPES, Shape


def main() -> int:
    args = parse()
    # drgn warns about missing debug info, which the lab does not need.
    logging.getLogger("drgn").setLevel(logging.ERROR)
    try:
        if args.command == "boot":
            shape = args.shape
            guest_kernel = kernel(shape.series, args, shape.arch, shape.flavour)
            if args.kdump:
                kdump.take_core(shape, guest_kernel, args.output)
            else:
                boot.take_core(shape, guest_kernel, args.output, args.live)
        elif args.command == "server":
            server.examine(SERVERS[args.name], kernel(SERVERS[args.name].series, args), args.output, args.cache)
        elif args.command == "pairs":
            for line in pairs.table(args.pairs or list(PAIRS), functools.cache(lambda series: kernel(series, args))):
                print(line, flush=True)
        elif args.command == "target-kernel":
            if args.vmlinux:
                build, files = " ".join(map(str, args.vmlinux)), args.vmlinux
            else:
                build, files = target_kernels.debian_build(args.name, lambda series: kernel(series, args))
            print(target_kernels.text(args.name, build, target_kernels.fields(files)), end="")
        else:
            for shape in args.shapes or BUNDLED_SHAPES:
                folder = bundle.bundle(shape, kernel(shape.series, args, shape.arch, shape.flavour), args.cache)
                size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
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
    debs = "folder of .deb files to search for kernels before the Debian mirror ($LAB_DEBS)"
    parser.add_argument("--debs", type=Path, default=os.environ.get("LAB_DEBS"), metavar="DIR", help=debs)
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help="downloads and unpacked kernels")
    commands = parser.add_subparsers(dest="command", required=True)
    boot_parser = commands.add_parser("boot")
    boot_parser.add_argument("shape", type=parse_shape, metavar="SHAPE")
    boot_parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    boot_parser.add_argument("--dwarf", action="store_true", help="also fetch the kernel's vmlinux with DWARF")
    ending = boot_parser.add_mutually_exclusive_group()
    ending.add_argument("--live", action="store_true", help="also let the guest audit its own kernel")
    ending.add_argument("--kdump", action="store_true", help="also let the guest panic, and write DIR/kdump/vmcore")
    bundle_parser = commands.add_parser("bundle")
    bundle_parser.add_argument("shapes", type=parse_shape, nargs="*", metavar="SHAPE")
    bundle_parser.set_defaults(dwarf=True)
    server_parser = commands.add_parser("server")
    server_parser.add_argument("name", choices=SERVERS, metavar="NAME", help=", ".join(SERVERS))
    server_parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    server_parser.set_defaults(dwarf=True)
    pairs_parser = commands.add_parser("pairs")
    pair_names = [*PAIRS, LARGEST]
    pairs_parser.add_argument(
        "pairs", nargs="*", metavar="PAIR", help=f"of {', '.join(pair_names)}; default: all but the last"
    )
    pairs_parser.set_defaults(dwarf=False)
    target_parser = commands.add_parser("target-kernel")
    target_parser.add_argument("name", metavar="NAME", help="major and minor release")
    target_parser.add_argument(
        "--vmlinux", type=Path, nargs="+", metavar="FILE", help="file with the kernel's DWARF, or its object files"
    )
    target_parser.set_defaults(dwarf=True)
    return parser.parse_args()


def parse_shape(name: str) -> Shape:
    """Return a shape by its name, for argparse."""
    if name not in SHAPES:
        raise argparse.ArgumentTypeError(f"no shape {name}; the shapes are {', '.join(SHAPES)}")
    return SHAPES[name]


def kernel(series: str, args: argparse.Namespace, arch: str = "amd64", flavour: str = "cloud") -> kernels.Kernel:
    """The kernel of a series; it is downloaded and unpacked if it is not in the cache."""
    with kernels.lock(args.cache, f"{kernels.SUITES[series]}-{arch}"):
        packages = kernels.source(series, arch, args.debs, args.cache, flavour)
        step(f"the {series} {flavour} kernel for {arch} from {packages}")
        return kernels.get(series, packages, args.cache, args.dwarf, flavour)


if __name__ == "__main__":
    sys.exit(main())
