"""Fuses attention in MLX programs and ONNX models: `fuser.optimize(fn)`, `fuser.load_onnx(path)`."""

import os as _os

from fuser.api import explain, optimize, trace, verify
from fuser.errors import (
    FuserError,
    InvalidInputError,
    InvalidModelError,
    TraceError,
    UnsupportedOperatorError,
)
from fuser.export.mlxfn import export_mlxfn
from fuser.export.onnx import export_onnx
from fuser.export.python import export_python
from fuser.fusion import fuse
from fuser.ir.graph import Graph, Node, Value
from fuser.ir.types import TensorType
from fuser.model import Model, load_onnx
from fuser.optimized import Optimized
from fuser.report import Region, Report
from fuser.report_log import switch_on as _switch_on
from fuser.verification import Verification
from fuser.version import __version__ as __version__

__all__ = [
    "FuserError",
    "Graph",
    "InvalidInputError",
    "InvalidModelError",
    "Model",
    "Node",
    "Optimized",
    "Region",
    "Report",
    "TensorType",
    "TraceError",
    "UnsupportedOperatorError",
    "Value",
    "Verification",
    "explain",
    "export_mlxfn",
    "export_onnx",
    "export_python",
    "fuse",
    "load_onnx",
    "optimize",
    "trace",
    "verify",
]

_switch_on(_os.environ.get("FUSER_LOG", ""))
