"""The table of ONNX operators in the docs, made from the frontend's own and from ONNX's node tests."""

from __future__ import annotations

from collections import Counter, defaultdict

import onnx

from fuser.frontends.onnx_graph import OLDEST
from fuser.frontends.onnx_ops.refused import REASONS, reason
from fuser.frontends.onnx_ops.registry import find, registered
from tests.onnx_cases import Outcome, cases

DOMAINS = {"": "ai.onnx", "ai.onnx.ml": "ai.onnx.ml", "ai.onnx.preview": "ai.onnx.preview"}


def _versions() -> dict[tuple[str, str], list[int]]:
    found: dict[tuple[str, str], list[int]] = defaultdict(list)
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain in DOMAINS and not schema.deprecated:
            found[schema.domain, schema.name].append(schema.since_version)
    return {key: _read(key[0], sorted(versions)) for key, versions in found.items()}


def _read(domain: str, history: list[int]) -> list[int]:
    """Without the versions that only opsets older than those that fuser reads have."""
    old = [version for version in history if domain == "" and version <= OLDEST]
    return old[-1:] + history[len(old) :]


def _tests(outcomes: dict[str, Outcome]) -> dict[tuple[str, str], Counter[str]]:
    """For each operator, what became of the tests whose first operator it is (its expanded function included)."""
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for name, case in cases().items():
        assert case.model is not None
        if not name.endswith("_expanded"):
            node = case.model.graph.node[-1]
            counts["" if node.domain == "ai.onnx" else node.domain, node.op_type][outcomes[name].verdict] += 1
    return counts


def table(outcomes: dict[str, Outcome]) -> str:
    """The document, for the outcome of every node test."""
    verdicts = Counter(outcome.verdict for outcome in outcomes.values())
    lines = [
        "# ONNX operators",
        "",
        "Made by `python benchmarks/onnx_backend_tests.py --docs`, and checked by a test: do not edit.",
        "",
        f"Of the {len(outcomes):,} node tests of onnx {onnx.__version__}, **{verdicts['passed']:,} pass** and "
        f"{verdicts['refused']} are refused with an error that names the operator and says why; "
        f"{verdicts['failed']} fail. (The expanded function bodies of ONNX are among them.)",
        "",
        "*Versions* are the opsets at which ONNX changed the operator, as far as fuser reads them "
        f"({OLDEST} and later); *runs* says from which on fuser has it. "
        "*Tests* counts ONNX's node tests that end in the operator itself.",
    ]
    tests = _tests(outcomes)
    versions = _versions()
    for domain, title in DOMAINS.items():
        lines += ["", f"## {title}", "", "| operator | versions | runs | tests |", "|---|---|---|---|"]
        for (where, name), history in sorted(versions.items()):
            if where == domain and (domain != "ai.onnx.ml" or find(domain, name, history[-1])):
                counts = tests.get((domain, name), Counter())
                total = counts.total()
                shown = f"{counts['passed']} of {total}" if total else ""
                lines.append(f"| {name} | {', '.join(map(str, history))} | {_runs(domain, name, history)} | {shown} |")
    lines += [
        "",
        "The other operators of ai.onnx.ml are refused: MLX is no engine for classical machine learning models.",
    ]
    names = sorted({operator.name for operator in registered() if operator.domain == "com.microsoft"})
    lines += ["", "## com.microsoft", "", "Those that ONNX Runtime's tools and exporters write into transformers:", ""]
    lines += [", ".join(names) + ".", "", "Refused:", ""]
    refused: dict[str, list[str]] = defaultdict(list)
    for (where, name), why in REASONS.items():
        if where == "com.microsoft":
            refused[why].append(name)
    lines += [f"- {', '.join(sorted(names))}: {why}." for why, names in refused.items()]
    lines += [f"- Operators of com.microsoft.nchwc: {reason('com.microsoft.nchwc', '')}."]
    return "\n".join(lines) + "\n"


def _runs(domain: str, name: str, history: list[int]) -> str:
    have = [version for version in history if find(domain, name, version) is not None]
    if not have:
        return f"refused: {reason(domain, name) or 'not done'}"
    if have == history:
        return f"from {have[0]}" if have[0] > OLDEST or domain else "all"
    return f"from {have[0]}"
