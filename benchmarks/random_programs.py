"""Many random attentions and near-attentions: fused where whole, left alone where broken, right in both.

    python benchmarks/random_programs.py --count 100000 --seed 1

Half of the programs are whole, half are broken. Prints each that fails with its plan, and a line of counts at the end;
exit status 1 when some failed. The plans are those of `tests/spellings_random.py`, drawn by hypothesis.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import mlx.core as mx
from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.properties_base import broken, whole
from tests.spellings_random import Plan, plans

# hypothesis slows down as it remembers what it has drawn
BATCH = 2000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    mx.disable_compile()
    counts: Counter[str] = Counter()
    start = time.monotonic()

    def checked(plan: Plan) -> None:
        kind = "broken" if plan.broken else "whole"
        counts[kind] += 1
        try:
            found = broken(plan) if plan.broken else whole(plan)[0]
        except Exception:
            found = [traceback.format_exc(limit=-3)]
        if found:
            counts["failed"] += 1
            print(f"{kind}: {'; '.join(found)}\n  {plan}", flush=True)

    for number in itertools.count():
        if counts["whole"] + counts["broken"] >= options.count:
            break
        rest = options.count - counts["whole"] - counts["broken"]
        quiet = settings(
            max_examples=min(BATCH, rest),
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate],
        )
        seed(options.seed * 1_000_003 + number)(quiet(given(plans(broken=bool(number % 2)))(checked)))()
    minutes = (time.monotonic() - start) / 60
    print(
        f"{counts['whole']} whole and {counts['broken']} broken programs, seed {options.seed}: "
        f"{counts['failed']} failed; {minutes:.0f} minutes"
    )
    return int(counts["failed"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
