"""Command line of the lab.

    python -m tests.lab boot SHAPE -o DIR     boot a shape, leave its full core and the guest's report in DIR
    python -m tests.lab bundle [SHAPE...]     rebuild bundled cores in tests/vmcores, default all of them

Needs a Debian machine with qemu-system-x86 and -arm, busybox-static, cpio and e2fsprogs; crash where it is there.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

from pipeline.collector.status import CollectError
from tests.lab import boot, bundle, kernels
from tests.lab.bundle import step
from tests.lab.kernels import LabError
from tests.lab.shapes import BUNDLED, SHAPES, Shape

CACHE = Path(__file__).parents[2] / ".cache" / "lab"


def main() -> int:
    args = parse()
    # Its warnings speak of debug info that the lab does without.
    logging.getLogger("drgn").setLevel(logging.ERROR)
    args.cache.mkdir(parents=True, exist_ok=True)
    try:
        if args.command == "boot":
            boot.take_core(args.shape, kernel(args.shape, args), args.output, args.live)
        else:
            for shape in args.shapes or BUNDLED:
                made = bundle.bundle(shape, kernel(shape, args), args.cache)
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
    return parser.parse_args()


def shape_named(name: str) -> Shape:
    if name not in SHAPES:
        raise argparse.ArgumentTypeError(f"no shape {name}; there are {', '.join(SHAPES)}")
    return SHAPES[name]


def kernel(shape: Shape, args: argparse.Namespace) -> kernels.Kernel:
    """The kernel of a shape, downloaded and unpacked where it is not yet."""
    packages = kernels.source(shape.series, shape.arch, args.debs, args.cache)
    step(f"{shape.name}: the {shape.series} kernel for {shape.arch} of {packages}")
    return kernels.get(shape.series, packages, args.cache, args.dwarf)


if __name__ == "__main__":
    sys.exit(main())
