"""Branches, loops and sequences: decided on the host where they can be, so that only plain operations are left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from fuser.errors import InvalidModelError, TraceError
from fuser.frontends.onnx_ops.registry import Call, host_value, ints, op
from fuser.frontends.onnx_types import Host, Items, Narrow, Value

_MAX_STEPS = 100_000


def _graph(call: Call, name: str) -> Any:
    graph = call.get(name)
    if graph is None or not hasattr(graph, "steps"):
        raise call.invalid(f"it has no graph {name!r}")
    return graph


@op("If", raw=True, host=(0,), pure=False)
def if_(call: Call, condition: Value) -> tuple[Value, ...]:
    """One of two graphs; both, and a choice for every element, where the condition is not known while tracing."""
    try:
        known = host_value(condition, call, 0)
    except TraceError:
        return _select(call, condition)
    if known.size != 1:
        raise call.invalid("its condition is not one value")
    return tuple(call.run(_graph(call, "then_branch" if known.reshape(())[()] else "else_branch"), {}))


def _select(call: Call, condition: Value) -> tuple[Value, ...]:
    try:
        yes, no = (call.run(_graph(call, name), {}) for name in ("then_branch", "else_branch"))
    except InvalidModelError as error:
        # one of them may be for other shapes than these
        raise TraceError(f"{call}: its condition is known only when the program runs: {error}") from None
    flag = call.array(condition).reshape(())
    results: list[Value] = []
    for first, second in zip(yes, no, strict=True):
        if any(isinstance(item, Items | Narrow) for item in (first, second)):
            raise call.refuse("its condition is known only when the program runs, and its values are not plain arrays")
        a, b = call.array(first), call.array(second)
        if a.shape != b.shape or a.dtype != b.dtype:
            raise TraceError(
                f"{call}: data-dependent shape: its condition is known only when the program runs, "
                f"and its branches give {list(a.shape)} and {list(b.shape)}"
            )
        results.append(mx.where(flag, a, b))
    return tuple(results)


def _stack(call: Call, parts: Sequence[Value], axis: int, empty: Host) -> Value:
    if not parts:
        return np.moveaxis(empty, 0, axis) if empty.ndim > axis else empty
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.stack(parts, axis=axis)  # type: ignore[arg-type]
    return mx.stack([call.array(part) for part in parts], axis=axis)


@op("Loop", raw=True, host=(0, 1), pure=False)
def loop(call: Call, count: Value | None = None, condition: Value | None = None, *initial: Value) -> tuple[Value, ...]:
    """A loop, written out: its trip count must be known while tracing."""
    body = _graph(call, "body")
    carried = list(initial)
    if len(body.inputs) != 2 + len(carried) or len(body.outputs) < 1 + len(carried):
        raise call.invalid("its body does not take and give what it should")
    limit = None if count is None else ints(host_value(count, call, 0))[0]
    going = condition is None or bool(host_value(condition, call, 1).reshape(())[()])
    scanned: list[list[Value]] = [[] for _ in body.outputs[1 + len(carried) :]]
    step = 0
    while going and (limit is None or step < limit):
        if step >= _MAX_STEPS:
            raise call.refuse(f"it takes more than {_MAX_STEPS:,} steps")
        given = [np.array(step, dtype=np.int64), np.array(True), *carried]
        go_on, *results = call.run(body, dict(zip(body.inputs, given, strict=True)))
        carried, parts = results[: len(carried)], results[len(carried) :]
        for collected, part in zip(scanned, parts, strict=True):
            collected.append(part)
        step += 1
        if limit is None or step < limit:
            going = bool(host_value(go_on, call, 1).reshape(())[()])
    names = body.outputs[1 + len(carried) :]
    return (
        *carried,
        *(_stack(call, parts, 0, body.empty[name]) for name, parts in zip(names, scanned, strict=True)),
    )


def _at(call: Call, value: Value, axis: int, index: int) -> Value:
    if isinstance(value, np.ndarray):
        return np.asarray(np.take(value, index, axis=axis))
    array = call.array(value)
    if not 0 <= index < array.shape[axis]:  # MLX would read outside
        raise call.invalid(f"there is no place {index} in an axis of {array.shape[axis]}")
    return array[(slice(None),) * axis + (index,)]


def _shape(call: Call, value: Value) -> tuple[int, ...]:
    return value.shape if isinstance(value, np.ndarray) else tuple(call.array(value).shape)


@op("Scan", since=9, raw=True, pure=False)
def scan(call: Call, *inputs: Value) -> tuple[Value, ...]:
    """A loop over slices of arrays, written out."""
    return _scan(call, inputs)


def _scan(call: Call, inputs: Sequence[Value]) -> tuple[Value, ...]:
    body, count = _graph(call, "body"), call.integer("num_scan_inputs")
    states = list(inputs[: len(inputs) - count])
    sources = inputs[len(inputs) - count :]
    outputs = len(body.outputs) - len(states)
    if count < 1 or len(body.inputs) != len(inputs) or outputs < 0:
        raise call.invalid("its body does not take and give what it should")
    axes = call.integers("scan_input_axes", [0] * count)
    axes = [call.axis(axis, len(_shape(call, source))) for axis, source in zip(axes, sources, strict=True)]
    backwards = call.integers("scan_input_directions", [0] * count)
    lengths = {_shape(call, source)[axis] for source, axis in zip(sources, axes, strict=True)}
    if len(lengths) != 1:
        raise call.invalid(f"its inputs have different lengths, {sorted(lengths)}")
    length = lengths.pop()
    if length > _MAX_STEPS:
        raise call.refuse(f"it takes more than {_MAX_STEPS:,} steps")
    scanned: list[list[Value]] = [[] for _ in range(outputs)]
    for step in range(length):
        slices = [
            _at(call, source, axis, length - 1 - step if turned else step)
            for source, axis, turned in zip(sources, axes, backwards, strict=True)
        ]
        results = call.run(body, dict(zip(body.inputs, [*states, *slices], strict=True)))
        states = results[: len(states)]
        for collected, part in zip(scanned, results[len(states) :], strict=True):
            collected.append(part)
    out_axes = call.integers("scan_output_axes", [0] * outputs)
    out_backwards = call.integers("scan_output_directions", [0] * outputs)
    names = body.outputs[len(states) :]
    stacked = []
    for name, parts, axis, turned in zip(names, scanned, out_axes, out_backwards, strict=True):
        rank = len(_shape(call, parts[0])) + 1 if parts else body.empty[name].ndim
        stacked.append(_stack(call, parts[::-1] if turned else parts, call.axis(axis, rank), body.empty[name]))
    return (*states, *stacked)


@op("Scan", since=8, raw=True, pure=False)
def scan_batch(call: Call, lengths: Value | None, *inputs: Value) -> tuple[Value, ...]:
    """Scan of opset 8: for each sample of a batch by itself."""
    if lengths is not None:
        raise call.refuse("sequence_lens of opset 8; newer opsets have no such input")
    batch = _shape(call, inputs[0])[0]
    directions = call.get("directions")
    attributes = {**call.attributes, **({"scan_input_directions": directions} if directions else {})}
    inner = Call(call.name, call.operator, 9, attributes, call.outputs, call.array, call.run)
    samples = [_scan(inner, [_at(call, item, 0, sample) for item in inputs]) for sample in range(batch)]
    empty = np.zeros((0,), dtype=np.float32)
    return tuple(_stack(call, parts, 0, empty) for parts in zip(*samples, strict=True))


@op("SequenceConstruct", raw=True)
def sequence_construct(call: Call, *inputs: Value) -> Items:
    """A sequence of arrays."""
    return Items(tuple(_element(call, item) for item in inputs))


def _element(call: Call, item: Value) -> Host | mx.array | Narrow:
    if isinstance(item, Items):
        raise call.refuse("sequences of sequences")
    return item


def _items(call: Call, sequence: Value) -> list[Host | mx.array | Narrow]:
    if not isinstance(sequence, Items):
        raise call.invalid("its input is not a sequence")
    return list(sequence.values)


def _place(call: Call, position: Value, count: int) -> int:
    place = ints(host_value(position, call, 1))[0]
    if not -count <= place < max(count, 1):
        raise call.invalid(f"place {place} of a sequence of {count}")
    return place


@op("SequenceEmpty", raw=True)
def sequence_empty(call: Call) -> Items:
    """A sequence of nothing."""
    return Items(())


@op("SequenceAt", raw=True, host=(1,))
def sequence_at(call: Call, sequence: Value, position: Value) -> Value:
    """An array of a sequence."""
    items = _items(call, sequence)
    if not items:
        raise call.invalid("it reads from an empty sequence")
    return items[_place(call, position, len(items))]


@op("SequenceLength", raw=True)
def sequence_length(call: Call, sequence: Value) -> Host:
    """How many arrays there are."""
    return np.array(len(_items(call, sequence)), dtype=np.int64)


@op("SequenceInsert", raw=True, host=(2,))
def sequence_insert(call: Call, sequence: Value, item: Value, position: Value | None = None) -> Items:
    """The sequence with one more array."""
    items = _items(call, sequence)
    items.insert(len(items) if position is None else _place(call, position, len(items) + 1), _element(call, item))
    return Items(tuple(items))


@op("SequenceErase", raw=True, host=(1,))
def sequence_erase(call: Call, sequence: Value, position: Value | None = None) -> Items:
    """The sequence with one array less."""
    items = _items(call, sequence)
    if not items:
        raise call.invalid("it takes from an empty sequence")
    del items[-1 if position is None else _place(call, position, len(items))]
    return Items(tuple(items))


@op("SequenceMap", raw=True, pure=False)
def sequence_map(call: Call, sequence: Value, *others: Value) -> tuple[Items, ...]:
    """A graph, applied to each array of a sequence; other sequences go along, arrays are the same for each."""
    body, count = _graph(call, "body"), len(_items(call, sequence))
    given = [list(value.values) if isinstance(value, Items) else [value] * count for value in (sequence, *others)]
    if len(body.inputs) != len(given) or any(len(values) != count for values in given):
        raise call.invalid("its sequences have different lengths, or its body takes other inputs")
    results = [call.run(body, dict(zip(body.inputs, values, strict=True))) for values in zip(*given, strict=True)]
    return tuple(
        Items(tuple(_element(call, result[place]) for result in results)) for place in range(len(body.outputs))
    )


@op("ConcatFromSequence", raw=True)
def concat_from_sequence(call: Call, sequence: Value) -> Value:
    """The arrays of a sequence as one."""
    items = _items(call, sequence)
    if not items:
        raise call.invalid("it joins an empty sequence")
    new = call.flag("new_axis")
    axis = call.axis(call.integer("axis"), len(_shape(call, items[0])) + new)
    if all(isinstance(item, np.ndarray) for item in items):
        return (np.stack if new else np.concatenate)(items, axis=axis)  # type: ignore[arg-type]
    arrays = [call.array(item) for item in items]
    return mx.stack(arrays, axis=axis) if new else mx.concatenate(arrays, axis=axis)


@op("SplitToSequence", raw=True, host=(1,))
def split_to_sequence(call: Call, value: Value, split: Value | None = None) -> Items:
    """Parts of an array along an axis as a sequence."""
    shape = _shape(call, value)
    axis = call.axis(call.integer("axis", 0), len(shape))
    size = shape[axis]
    sizes = None if split is None else host_value(split, call, 1)
    lengths = [1] * size if sizes is None else ints(sizes)
    if sizes is not None and sizes.ndim == 0:
        each = lengths[0]
        if each < 1:
            raise call.invalid(f"parts of size {each}")
        lengths = [min(each, size - start) for start in range(0, size, each)]
    if any(length < 0 for length in lengths) or sum(lengths) != size:
        raise call.invalid(f"an axis of {size} cannot be split into {lengths}")
    ends = np.cumsum(lengths)[:-1]
    if isinstance(value, np.ndarray):
        parts: list[Host | mx.array] = list(np.split(value, ends, axis=axis))
    else:
        parts = list(mx.split(call.array(value), [int(end) for end in ends], axis=axis))
    if sizes is None and not call.flag("keepdims", True):
        parts = [np.squeeze(part, axis) if isinstance(part, np.ndarray) else mx.squeeze(part, axis) for part in parts]
    return Items(tuple(parts))


@op("OptionalHasElement", raw=True)
def optional_has_element(call: Call, value: Value | None = None) -> Host:
    """Whether there is a value."""
    return np.array(value is not None)


@op("OptionalGetElement", raw=True)
def optional_get_element(call: Call, value: Value) -> Value:
    """The value of an optional that is known to have one."""
    return value
