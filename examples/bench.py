"""A workload of your own under several policies, with a report.

python examples/bench.py [FOLDER]
"""

import sys

from miriam import Criticality
from miriam.bench import Closed, Entry, Poisson, Results, Workload, print_table, run_mdtb

ROBOT = Workload(
    "robot",
    "A detector at random moments beside mapping without a pause",
    (
        Entry("detector", "resnet18-b1", Criticality.CRITICAL, Poisson(40), deadline_us=20_000),
        Entry("mapping", "mobilenetv3-b1", Criticality.NORMAL, Closed()),
    ),
)


def main(out: str | None = None, seconds: float = 1.0) -> Results:
    """Run it; ``out`` is a folder for the report."""
    results = run_mdtb([ROBOT], ["sequential", "multistream", "miriam"], "sim:orin", seconds, out=out)
    print_table(results)
    return results


if __name__ == "__main__":  # runs go on side by side in processes of their own
    main(*sys.argv[1:2])
