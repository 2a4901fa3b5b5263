"""Make files on all mounts below /m from memory cgroups at work at the same time. Arguments: the cgroups' mount, and
their number. Each makes a thousand files on one mount and a few on each of some others, a tenth of them with pages."""

import os
import random
import sys

cgroups, memcgs = sys.argv[1], int(sys.argv[2])
mounts = sorted(os.listdir("/m"))


def work(n):
    with open(f"{cgroups}/c{n}/cgroup.procs", "w") as procs:
        procs.write("0")
    rng = random.Random(n)
    counts = [(mounts[n % len(mounts)], 1000)] + [(rng.choice(mounts), 1 + int(rng.expovariate(0.1))) for _ in range(8)]
    for folder, (mount, files) in enumerate(counts):
        path = f"/m/{mount}/c{n}-{folder}"
        os.mkdir(path)
        for i in range(files):
            fd = os.open(f"{path}/{i}", os.O_CREAT | os.O_WRONLY)
            if i % 10 == 0:
                os.pwrite(fd, b"x", 4096)
            os.close(fd)


children = []
for n in range(memcgs):
    os.mkdir(f"{cgroups}/c{n}")
    child = os.fork()
    if not child:
        work(n)
        os._exit(0)
    children.append(child)
if any(os.waitpid(child, 0)[1] for child in children):
    sys.exit("a process failed")
