"""Our attention kernel on a host's CPU: compiled once by the system's C++ compiler, and called on numpy arrays.

Where there is no compiler, or it fails, numpy computes the same in blocks.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fuser.kernels import blocks
from fuser.kernels.bands import FAR
from fuser.kernels.flash_host import HOST

FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-pthread", "-fno-math-errno")
WIDEST = 512
# below this many multiplications starting a second thread costs more than it gives
ALONE = 1 << 24


class Problem(ctypes.Structure):
    """What the compiled code is told; the same fields in the same order as in its source."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "bias", "sinks", "slopes", "keep", "out")),
        *((name, ctypes.c_int64) for name in ("batch", "heads", "groups", "queries", "keys", "depth", "width")),
        *((name, ctypes.c_int64) for name in ("padded", "mask_batch", "mask_heads", "mask_head", "mask_row")),
        *((name, ctypes.c_int64) for name in ("mask_key", "mask", "ahead", "behind", "folded")),
        *((name, ctypes.c_float) for name in ("scale", "cap", "fill", "empty")),
    )


def compiler() -> str | None:
    """The system's C++ compiler: what `CXX` names, or the first that is found."""
    named = os.environ.get("CXX")
    return next((path for name in (named, "c++", "g++", "clang++") if name and (path := shutil.which(name))), None)


def cache() -> Path:
    """Where compiled code is kept."""
    base = os.environ.get("MLX_FUSER_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(base) / "mlx-fuser"


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled body, built when it is first asked for; None where there is no compiler, or it fails."""
    found = compiler()
    if found is None or os.environ.get("MLX_FUSER_HOST_KERNEL") == "0":
        return None
    try:
        path = built(found)
        compiled = ctypes.CDLL(str(path))
    except (OSError, subprocess.SubprocessError):
        return None
    compiled.attend.argtypes = (ctypes.POINTER(Problem), ctypes.c_int)
    compiled.attend.restype = None
    compiled.problem_size.restype = ctypes.c_int64
    return compiled if compiled.problem_size() == ctypes.sizeof(Problem) else None


def built(found: str) -> Path:
    """The shared library, compiled unless it is there already."""
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    machine = platform.machine() + _processor()
    key = hashlib.sha256("\n".join((HOST, *FLAGS, found, version, machine)).encode()).hexdigest()[:20]
    folder = cache()
    path = folder / f"attend-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as room:
            source, target = Path(room) / "attend.cpp", Path(room) / "attend.so"
            source.write_text(HOST)
            command = [found, *FLAGS, "-march=native", str(source), "-o", str(target)]
            subprocess.run(command, capture_output=True, check=True, timeout=300)
            # another process may have been as quick: the last one wins, both are the same
            target.replace(path)
    return path


def _processor() -> str:
    """What tells processors apart that run different instructions."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@functools.cache
def threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


Array = NDArray[Any]
Shape = tuple[int, ...]


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    scale: float,
    mask: Array | None = None,
    sinks: Array | None = None,
    slopes: Array | None = None,
    folded: bool = False,
    softcap: float = 0.0,
    ahead: int = FAR,
    behind: int = FAR,
    fill: float = -math.inf,
    empty: float = 0.0,
) -> Array:
    """Attention of float32 arrays `[B, N_q, T_q, D]`, `[B, N_kv, T_kv, D]`, `[B, N_kv, T_kv, D_v]`.

    `mask` is boolean (True keeps) or float32 (added), and broadcasts to `[B, N_q, T_q, T_kv]`. Row i sees the columns
    from i + T_kv - T_q - `behind` to i + T_kv - T_q + `ahead`: causal is `ahead=0`. `softcap` c makes c tanh(s / c) of
    the scaled scores, `slopes` (one for each head) add slope x (column - i - T_kv + T_q), of which `folded` takes the
    size alone. A boolean mask sets scores to `fill`, and a row that sees no key gives `empty` (0 or NaN). Raises
    `ValueError` for head sizes over 496.
    """
    compiled = library()
    if compiled is None:
        given: dict[str, Any] = {"mask": mask, "sinks": sinks, "slopes": slopes, "folded": folded}
        given |= {"softcap": softcap, "ahead": ahead, "behind": behind, "fill": fill, "empty": empty}
        return blocks.attend(q, k, v, scale=scale, **given)
    q, k, v = (np.ascontiguousarray(each, np.float32) for each in (q, k, v))
    problem = Problem.from_buffer_copy(_sizes(q.shape, k.shape, v.shape[3], scale, softcap, ahead, behind, folded))
    problem.fill, problem.empty = fill, empty
    out = np.empty((*q.shape[:3], v.shape[3]), np.float32)
    # arrays that are made here must live until the call is over
    alive = [q, k, v]
    if sinks is not None:
        alive.append(np.ascontiguousarray(sinks, np.float32))
        problem.sinks = _address(alive[-1])
    if slopes is not None:
        alive.append(np.ascontiguousarray(slopes, np.float32))
        problem.slopes = _address(alive[-1])
    if mask is not None:
        boolean = mask.dtype == np.bool_
        if not boolean:
            mask = mask.astype(np.float32, copy=False)
        alive.append(mask)
        full = np.broadcast_to(mask, (*q.shape[:3], k.shape[2]))
        batch, head, row, key = (step // full.itemsize for step in full.strides)
        problem.mask_batch, problem.mask_heads, problem.mask_head = batch, head * problem.groups, head
        problem.mask_row, problem.mask_key, problem.mask = row, key, 1 if boolean else 2
        if boolean:
            problem.keep = _address(full)
        else:
            problem.bias = _address(full)
    problem.q, problem.k, problem.v, problem.out = _address(q), _address(k), _address(v), _address(out)
    alone = q.size * k.shape[2] * (1 + v.shape[3] / max(q.shape[3], 1)) < ALONE
    compiled.attend(ctypes.byref(problem), 1 if alone else threads())
    return out


def _address(array: Array) -> int:
    # ten times as fast as `array.ctypes.data`
    address: int = array.__array_interface__["data"][0]
    return address


@functools.lru_cache(256)
def _sizes(
    q: Shape, k: Shape, width: int, scale: float, softcap: float, ahead: int, behind: int, folded: bool
) -> bytes:
    """What the compiled code is told of calls of these shapes, but for the arrays."""
    if max(q[3], width) > WIDEST - 16:
        raise ValueError(f"head sizes of {q[3]} and {width} are more than the kernel has room for")
    return bytes(
        Problem(
            batch=q[0],
            heads=k[1],
            groups=q[1] // k[1],
            queries=q[2],
            keys=k[2],
            depth=q[3],
            width=width,
            ahead=min(ahead, FAR),
            behind=min(behind, FAR),
            folded=folded,
            scale=scale,
            cap=softcap,
        )
    )
