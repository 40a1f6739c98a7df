"""Fuses attention in MLX programs and ONNX models: `fuser.optimize(fn)`, `fuser.load_onnx(path)`."""

from fuser.api import explain, optimize, trace, verify
from fuser.errors import (
    FuserError,
    InvalidInputError,
    InvalidModelError,
    TraceError,
    UnsupportedOperatorError,
)
from fuser.fusion import fuse
from fuser.ir.graph import Graph, Node, Value
from fuser.ir.types import TensorType
from fuser.model import Model, load_onnx
from fuser.optimized import Optimized
from fuser.report import Region, Report
from fuser.verification import Verification

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
    "fuse",
    "load_onnx",
    "optimize",
    "trace",
    "verify",
]
