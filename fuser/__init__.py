"""Fuses attention in MLX programs and ONNX models: `fuser.optimize(fn)`, `fuser.load_onnx(path)`."""

from fuser.api import explain, optimize, trace
from fuser.errors import FuserError, InvalidInputError, InvalidModelError, TraceError, UnsupportedOperatorError
from fuser.fusion import fuse
from fuser.ir.graph import Graph, Node, Value
from fuser.ir.types import TensorType
from fuser.optimized import Optimized
from fuser.report import Region, Report

__all__ = [
    "FuserError",
    "Graph",
    "InvalidInputError",
    "InvalidModelError",
    "Node",
    "Optimized",
    "Region",
    "Report",
    "TensorType",
    "TraceError",
    "UnsupportedOperatorError",
    "Value",
    "explain",
    "fuse",
    "optimize",
    "trace",
]
