"""What can go wrong, typed. Every message is one line that says where and what to do."""


class FuserError(Exception):
    """The root of all errors that fuser raises on purpose."""


class InvalidModelError(FuserError):
    """The model file is broken, truncated, hostile, or not a model at all."""


class UnsupportedOperatorError(FuserError):
    """The model holds operators (or modes of operators) that fuser does not have; the message lists all of them."""


class InvalidInputError(FuserError):
    """A call's arguments do not fit the model: a wrong name, shape or type."""


class TraceError(FuserError):
    """The program cannot be traced into a graph: it reads values, or uses what MLX cannot export."""
