"""Turns the rows of `check_exports.py --json` into the page of the docs, a line for each model and its code.

python benchmarks/export_models.py OUT
python benchmarks/export_optimum.py OUT
python benchmarks/check_exports.py OUT --no-compile --json rows.json
python benchmarks/exports_page.py rows.json [MORE.json ...] docs/exports.md
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

HEAD = """# Models checked

Every export of `benchmarks/export_models.py` ({models} architectures of transformers and diffusers with small random
weights, or parts of them, with eager and with `scaled_dot_product_attention` code) and of `export_optimum.py` is
loaded, run on two to four sets of inputs and compared with ONNX Runtime, and its attentions are counted against the
number declared by hand from the architecture's source. {agree} of {all} exports agree (largest difference relative to
the largest output: 1e-4 in float32, 2e-2 in float16); {fused} of {truth} attentions are fused.

Those that differ are two models. In `blt`'s hashes ONNX Runtime sums int64 as floating point, so that numbers over
2^53 lose their last digits; ours are exact. The boxes of this small `pp_doclayout_v3` are all 1e-5, where ONNX
Runtime's approximation of the sigmoid is 1e-8 off.

Under `TorchScript`, `dynamo` (torch's two exporters) and `optimum` stand the opsets; in brackets, how many attentions
are fused of those that there are, where it is not all of them. An opset that is missing was not exported: mostly
because the exporter, or ONNX Runtime with what it wrote, cannot. optimum's files stand by themselves (encoders,
decoders without a past, with one, and merged, which are run on both branches). Other softmaxes (routers, classifiers)
are not counted. Of diffllama's softmaxes the dynamo exporter merges each two that are equal, so that the file holds
half of those declared.

Not in the table: configurations that reuse another model's classes, models whose code needs timm, natten, detectron2
or torchaudio, models that torch's exporters could not write, and a few that nobody has made small yet.

MLX {mlx}, fuser {fuser}. The commands:

```
python benchmarks/export_models.py OUT
python benchmarks/export_optimum.py OUT --opset 18
python benchmarks/check_exports.py OUT --no-compile --json rows.json
python benchmarks/exports_page.py rows.json docs/exports.md
```

| model | code | attentions | TorchScript | dynamo | optimum | largest error | why not |
|---|---|---|---|---|---|---|---|
"""
EXPORTERS = ("ts", "dyn", "opt")


def page(rows: list[dict[str, Any]]) -> str:
    """The page for the rows of a run."""
    models: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        name, code, exporter = row["model"].split("__")
        if exporter.startswith("opt"):
            name = name.removesuffix("_model")
        models[name, code].append(row)
    agree = sum(agrees(row) for row in rows)
    fused, truth = (sum(values) for values in zip(*(counted(row) for row in rows), strict=True))
    head = HEAD.format(
        models=f"{len({row['model'].split('__')[0] for row in rows if '__opt' not in row['model']}):,}",
        agree=f"{agree:,}",
        all=f"{len(rows):,}",
        fused=f"{fused:,}",
        truth=f"{truth:,}",
        mlx=version("mlx"),
        fuser=version("mlx-fuser"),
    )
    return head + "".join(line(*key, models[key]) for key in sorted(models))


def agrees(row: dict[str, Any]) -> bool:
    return row["agreed"] == row["sets"] and not row["failure"]


def counted(row: dict[str, Any]) -> tuple[int, int]:
    """Attentions fused, and those there are."""
    return row["counts"].get("fused", 0), row["truth"]


def line(name: str, code: str, rows: list[dict[str, Any]]) -> str:
    """The line of one model: all of its exports."""
    truths = sorted({row["truth"] for row in rows})
    partly = [row for row in rows if counted(row)[0] != row["truth"]]
    # where in the model it stands is the same for all but the layer
    found = {reason.partition(" (at ")[0] for row in partly for reason in row["reasons"]}
    reasons = sorted(found | {row["failure"] for row in rows})
    why = "; ".join(reason for reason in reasons if reason).replace("|", "\\|")
    error = max(row["error"] for row in rows)
    cells = (" · ".join(filter(None, (cell(row, exporter) for row in rows))) for exporter in EXPORTERS)
    count = " or ".join(str(truth) for truth in truths)
    return f"| {name} | {code} | {count} | {' | '.join(cells)} | {error:.0e} | {why} |\n"


def cell(row: dict[str, Any], exporter: str) -> str:
    """The opset of an export, and what is missing there."""
    opset = row["model"].split("__")[2]
    if not opset.startswith(exporter):
        return ""
    fused, truth = counted(row)
    note = "" if fused == truth else f" ({fused}/{truth})"
    return opset.removeprefix(exporter) + note + ("" if agrees(row) else " differs")


def main() -> None:
    *files, to = (Path(argument) for argument in sys.argv[1:])
    # a later file goes over an earlier one
    rows = {row["model"]: row for file in files for row in json.loads(file.read_text())}
    to.write_text(page([rows[name] for name in sorted(rows)]))


if __name__ == "__main__":
    main()
