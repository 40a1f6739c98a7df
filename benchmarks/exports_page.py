"""Turns the rows of `check_exports.py --json` into the page of the docs, a line for each model.

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

Every export of `benchmarks/export_models.py` (architectures of transformers and diffusers with small random weights, by
both of torch's exporters, with eager and with `scaled_dot_product_attention` code) and of `export_optimum.py` is
loaded, run on two or three sets of inputs and compared with ONNX Runtime, and its attentions are counted against the
number declared by hand from the architecture's source. {agree} of {all} exports agree (largest difference relative to
the largest output: 1e-4 in float32, 2e-2 in float16); {fused} of {truth} attentions are fused. `ts` is the TorchScript
exporter, `dyn` the dynamo one, `opt` optimum (each of its files by itself, merged decoders with and without a past),
with the opset. Other softmaxes (routers, classifiers) are not counted. Of diffllama's softmaxes the dynamo exporter
merges each two that are equal, so that the file holds half of those declared.

MLX {mlx}, fuser {fuser}. The commands:

```
python benchmarks/export_models.py OUT
python benchmarks/export_optimum.py OUT
python benchmarks/check_exports.py OUT --no-compile --json rows.json
python benchmarks/exports_page.py rows.json docs/exports.md
```

| model | exports | agree | largest error | fused | why not |
|---|---|---|---|---|---|
"""


def page(rows: list[dict[str, Any]]) -> str:
    """The page for the rows of a run."""
    models: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        models[row["model"].split("__")[0]].append(row)
    agree = sum(row["agreed"] == row["sets"] and not row["failure"] for row in rows)
    fused, truth = (sum(values) for values in zip(*(counted(row) for row in rows), strict=True))
    head = HEAD.format(
        agree=f"{agree:,}",
        all=f"{len(rows):,}",
        fused=f"{fused:,}",
        truth=f"{truth:,}",
        mlx=version("mlx"),
        fuser=version("mlx-fuser"),
    )
    return head + "".join(line(name, models[name]) for name in sorted(models))


def counted(row: dict[str, Any]) -> tuple[int, int]:
    """Attentions fused, and those there are."""
    return row["counts"].get("fused", 0), row["truth"]


def line(name: str, rows: list[dict[str, Any]]) -> str:
    """The line of one model: all of its exports."""
    exports = sorted({row["model"].split("__")[2] for row in rows})
    agree = sum(row["agreed"] == row["sets"] and not row["failure"] for row in rows)
    fused, truth = (sum(values) for values in zip(*(counted(row) for row in rows), strict=True))
    partly = [row for row in rows if counted(row)[0] != row["truth"]]
    # where in the model it stands is the same for all but the layer
    found = {reason.partition(" (at ")[0] for row in partly for reason in row["reasons"]}
    reasons = sorted(found | {row["failure"] for row in rows})
    why = "; ".join(reason for reason in reasons if reason).replace("|", "\\|")
    error = max(row["error"] for row in rows)
    return f"| {name} | {', '.join(exports)} | {agree}/{len(rows)} | {error:.0e} | {fused}/{truth} | {why} |\n"


def main() -> None:
    *files, to = (Path(argument) for argument in sys.argv[1:])
    to.write_text(page([row for file in files for row in json.loads(file.read_text())]))


if __name__ == "__main__":
    main()
