"""Decodes greedily with exported decoders, in fuser and in ONNX Runtime: are the tokens the same?

    python benchmarks/greedy_decoding.py ROOT [ROOT ...] [--tokens 20] [--no-compile]

Takes the folders of `export_models.py` and `export_optimum.py` whose models have a past, starts from their first set of
inputs (a merged decoder from the one without a past), and feeds the presents back. A token is the largest output of the
last position. Exit status 1 when a token differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import onnxruntime as ort
from check_exports import folders, read_sets

import fuser

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Mapping[str, Any]]


def present_of(name: str) -> str:
    """The output that is the next past: `present.0.decoder.key` for `past_key_values.0.decoder.key`."""
    return name.replace("past_key_values", "present").replace("past_", "present_")


def decode(run: Run, first: Arrays, tokens: int) -> np.ndarray:
    """The tokens, one line for each of the batch."""
    ids = "decoder_input_ids" if "decoder_input_ids" in first else "input_ids"
    feed, made = dict(first), []
    for _ in range(tokens):
        outputs = run(feed)
        scores = next((outputs[key] for key in ("logits",) if key in outputs), None)
        scores = np.array(next(iter(outputs.values())) if scores is None else scores)
        token = scores[:, -1].argmax(-1) % 60
        made.append(token)
        for name in feed:
            present = present_of(name)
            # what the encoder gives is computed once, by the branch without a past
            if present != name and present in outputs and not ("encoder" in name and not _fresh(feed)):
                feed[name] = np.array(outputs[present])
        if "use_cache_branch" in feed:
            feed["use_cache_branch"] = np.array([True])
        if "position_ids" in feed:
            feed["position_ids"] = feed["position_ids"][:, -1:] + 1
        mask = "decoder_attention_mask" if "decoder_attention_mask" in feed else "attention_mask"
        if mask in feed and ids == "input_ids":
            feed[mask] = np.concatenate([feed[mask], np.ones_like(feed[mask][:, :1])], axis=1)
        feed[ids] = token[:, None].astype(feed[ids].dtype)
    return np.stack(made, axis=1)


def _fresh(feed: Arrays) -> bool:
    return "use_cache_branch" in feed and not feed["use_cache_branch"][0]


def start(folder: Path) -> Arrays | None:
    """The first inputs; `None` for a model that has no past."""
    sets = [inputs for _, inputs, _ in read_sets(folder)]
    if not any("past" in name for name in sets[0]):
        return None
    return next((inputs for inputs in sets if _fresh(inputs)), sets[0])


def main() -> int:
    parser = argparse.ArgumentParser(description="Decodes greedily in fuser and in ONNX Runtime.")
    parser.add_argument("roots", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--no-compile", action="store_true", help="without mx.compile, which is slow on a CPU")
    options = parser.parse_args()
    if options.no_compile:
        mx.disable_compile()
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 4
    same = count = 0
    for folder in folders(options.roots):
        first = start(folder)
        if first is None:
            continue
        count += 1
        try:
            session = ort.InferenceSession(str(folder / "model.onnx"), quiet, ["CPUExecutionProvider"])
            names = [value.name for value in session.get_outputs()]
            expected = decode(
                lambda feed, s=session, n=names: dict(zip(n, s.run(n, feed), strict=True)),  # type: ignore[misc]
                first,
                options.tokens,
            )
            model = fuser.load_onnx(folder / "model.onnx")
            got = decode(lambda feed, m=model: m(**feed), first, options.tokens)  # type: ignore[misc]
        except Exception as error:
            print(f"{folder.name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", flush=True)
            continue
        counts = model.report.counts
        agree = np.array_equal(got, expected)
        same += agree
        said = "the same" if agree else f"differ from token {int((got != expected).any(0).argmax())} on"
        print(f"{folder.name}: {options.tokens} tokens {said}; {counts['fused']} fused, {counts['refused']} refused")
    print(f"{same} of {count} decoders give the same tokens")
    return 0 if same == count else 1


if __name__ == "__main__":
    sys.exit(main())
