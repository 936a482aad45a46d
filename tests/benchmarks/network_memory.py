"""Memory of a worker by network and size of images: ``python tests/benchmarks/network_memory.py``.

Each network, with random weights and up to its last layer, runs over batches of one size in a process of its own, which
imports what a worker imports. What such a process takes grows with the area of a batch's images together, so two
sizes give the line (MiB at no area, MiB a megapixel) that stands in ``helpers.networks.NETWORKS`` and by which
``helpers.check`` says beforehand whether a choice fits; two others show how well it does.
"""

from __future__ import annotations

import argparse
import sys

from memory import peak_of

WORKER = """
import sys
import numpy as np
import openvino
from helpers import featurizer, networks
size = int(sys.argv[2])
network = featurizer.load_graph(sys.argv[1], 1, 0)
images = np.zeros((networks.batch_size(size), size, size, 3), np.uint8)
for _ in range(3):
    network([images])
"""
TIMES = (1, 3, 2, 0.5)  # sides in units of the network's own size: two for the line, two to try it on


def worker_memory(name: str, size: int) -> float:
    """Peak PSS of a process that runs the network over a few batches, in MiB."""
    from helpers.networks import export_graph

    graph = export_graph(name, "random", image_size=size)
    peak = peak_of([sys.executable, "-c", WORKER, str(graph), str(size)], interval=0.02)
    if peak.status:
        raise SystemExit(f"{name} at {size} px ended with status {peak.status}")
    return peak.total


def main() -> None:
    from helpers.networks import NETWORKS, batch_size

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    for name in parser.parse_args().networks:
        sizes = [round(NETWORKS[name].image_size * times) for times in TIMES]
        found = [worker_memory(name, size) for size in sizes]
        areas = [batch_size(size) * size**2 / 1e6 for size in sizes]
        slope = (found[1] - found[0]) / (areas[1] - areas[0])
        start = found[0] - slope * areas[0]
        print(f"{name}: {start:.0f} MiB + {slope:.0f} MiB a megapixel")
        for size, area, memory in zip(sizes, areas, found, strict=True):
            batch, line = batch_size(size), start + slope * area
            print(f"    {batch} of {size} px: {memory:.0f} MiB, by the line {line:.0f}", flush=True)


if __name__ == "__main__":
    main()
