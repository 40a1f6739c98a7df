"""Run ONNX's own node tests through the ONNX frontend and print what passes, what is refused and why.

    python benchmarks/onnx_backend_tests.py [PART OF A NAME] [--host] [--verbose] [--docs]

`--host` gives the inputs as values known on the host, so that the constant side of every operator is tested too;
`--docs` writes the table of operators into the docs.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.onnx_cases import cases, run  # noqa: E402
from tests.onnx_table import table  # noqa: E402


def main(arguments: list[str]) -> int:
    flags = {item for item in arguments if item.startswith("--")}
    parts = [item for item in arguments if not item.startswith("--")]
    counts: Counter[str] = Counter()
    reasons: dict[str, list[str]] = defaultdict(list)
    outcomes = {}
    for name, case in cases().items():
        if parts and not any(part in name for part in parts):
            continue
        outcome = run(case, on_host="--host" in flags)
        outcomes[name] = outcome
        counts[outcome.verdict] += 1
        if outcome.verdict == "failed":
            print(f"FAILED {name}: {outcome.why}")
        if outcome.verdict == "refused":
            reasons[outcome.why if "--verbose" in flags else outcome.why[:110]].append(name)
    for why, names in sorted(reasons.items(), key=lambda item: -len(item[1])):
        print(f"refused {len(names):4}  {why}   e.g. {names[0]}")
    print(f"{counts.total()} cases: " + ", ".join(f"{counts[key]} {key}" for key in ("passed", "refused", "failed")))
    if "--docs" in flags and not parts:
        (ROOT / "docs" / "onnx-operators.md").write_text(table(outcomes), encoding="utf-8")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
