"""Recurrent layers, written out step by step."""

from __future__ import annotations

import math
from collections.abc import Callable

import mlx.core as mx
import numpy as np

from fuser.frontends.onnx_ops.attention import merge_heads, split_heads
from fuser.frontends.onnx_ops.math import const
from fuser.frontends.onnx_ops.registry import Call, op

Activation = Callable[[mx.array], mx.array]
States = tuple[mx.array, ...]


def _activation(call: Call, name: str, alpha: float | None, beta: float | None) -> Activation:
    def pick(value: float | None, default: float) -> float:
        return default if value is None else value

    table: dict[str, Activation] = {
        "relu": lambda x: mx.maximum(x, const(0, x)),
        "tanh": mx.tanh,
        "sigmoid": mx.sigmoid,
        "affine": lambda x: x * const(pick(alpha, 1.0), x) + const(pick(beta, 0.0), x),
        "leakyrelu": lambda x: mx.where(x < 0, x * const(pick(alpha, 0.01), x), x),
        "thresholdedrelu": lambda x: mx.where(x >= const(pick(alpha, 1.0), x), x, const(0, x)),
        "scaledtanh": lambda x: const(pick(alpha, 1.0), x) * mx.tanh(const(pick(beta, 1.0), x) * x),
        "hardsigmoid": lambda x: mx.clip(
            x * const(pick(alpha, 0.2), x) + const(pick(beta, 0.5), x), const(0, x), const(1, x)
        ),
        "elu": lambda x: mx.where(x >= 0, x, const(pick(alpha, 1.0), x) * mx.expm1(x)),
        "softsign": lambda x: x / (const(1, x) + mx.abs(x)),
        "softplus": lambda x: mx.logaddexp(x, const(0, x)),
    }
    if name.lower() not in table:
        raise call.invalid(f"activation {name!r} is unknown")
    return table[name.lower()]


def _activations(call: Call, defaults: list[str], directions: int) -> list[list[Activation]]:
    names = call.get("activations") or defaults * directions
    if len(names) != len(defaults) * directions:
        raise call.invalid(f"{len(names)} activations for {directions} directions of {len(defaults)}")
    alphas, betas = list(call.get("activation_alpha") or []), list(call.get("activation_beta") or [])
    takes_alpha = {"affine", "leakyrelu", "thresholdedrelu", "scaledtanh", "hardsigmoid", "elu"}
    takes_beta = {"affine", "scaledtanh", "hardsigmoid"}
    made = []
    for name in names:
        alpha = alphas.pop(0) if alphas and name.lower() in takes_alpha else None
        beta = betas.pop(0) if betas and name.lower() in takes_beta else None
        made.append(_activation(call, name, alpha, beta))
    return [made[index * len(defaults) : (index + 1) * len(defaults)] for index in range(directions)]


def _clipped(call: Call) -> Activation:
    limit = call.get("clip")
    if limit is None:
        return lambda x: x
    return lambda x: mx.clip(x, const(-limit, x), const(limit, x))


def _turned(x: mx.array, lengths: mx.array | None) -> mx.array:
    """The steps of each sequence backwards, what follows its end left in place."""
    steps = mx.array(np.arange(x.shape[0])).reshape(-1, 1)
    if lengths is None:
        return x[::-1]
    ends = lengths.astype(mx.int64).reshape(1, -1)
    order = mx.where(steps < ends, ends - mx.array(1, dtype=mx.int64) - steps, steps)
    return mx.take_along_axis(x, mx.broadcast_to(order[..., None], x.shape), axis=0)


Step = Callable[[mx.array, States], States]


def _unroll(x: mx.array, states: States, step: Step, lengths: mx.array | None) -> tuple[mx.array, States]:
    outputs = []
    for index in range(x.shape[0]):
        new = step(x[index], states)
        if lengths is None:
            states, seen = new, new[0]
        else:
            going = (mx.array(index, dtype=mx.int64) < lengths.astype(mx.int64))[:, None]
            states = tuple(mx.where(going, after, before) for after, before in zip(new, states, strict=True))
            seen = mx.where(going, new[0], const(0, new[0]))
        outputs.append(seen)
    if not outputs:
        return mx.zeros((0, *states[0].shape), dtype=x.dtype), states
    return mx.stack(outputs), states


def _layer(
    call: Call,
    x: mx.array,
    hidden: int,
    initial: list[mx.array | None],
    lengths: mx.array | None,
    cell: Callable[[int, mx.array], tuple[mx.array, Step]],
) -> tuple[mx.array, ...]:
    """All directions of a layer; `cell` gives for each the inputs' part of the gates, and the step."""
    direction = call.text("direction", "forward")
    kinds = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    if direction not in kinds:
        raise call.invalid(f"direction {direction!r} is unknown")
    batch_first = call.integer("layout", 0) == 1
    if batch_first:
        x = mx.transpose(x, (1, 0, 2))
        initial = [None if state is None else mx.transpose(state, (1, 0, 2)) for state in initial]
    if any(state is not None and state.shape[0] != len(kinds[direction]) for state in initial):
        raise call.invalid(f"its initial states are not those of {len(kinds[direction])} directions")
    sequences, finals = [], []
    for place, backwards in enumerate(kinds[direction]):
        source = _turned(x, lengths) if backwards else x
        states = tuple(
            mx.zeros((x.shape[1], hidden), dtype=x.dtype) if state is None else state[place] for state in initial
        )
        gates, step = cell(place, source)
        outputs, states = _unroll(gates, states, step, lengths)
        sequences.append(_turned(outputs, lengths) if backwards else outputs)
        finals.append(states)
    result = mx.stack(sequences, axis=1)
    last = [mx.stack([states[index] for states in finals]) for index in range(len(initial))]
    if batch_first:
        result = mx.transpose(result, (2, 0, 1, 3))
        last = [mx.transpose(state, (1, 0, 2)) for state in last]
    return (result, *last)


def _check_directions(call: Call, *arrays: mx.array | None) -> None:
    counts = {array.shape[0] if array.ndim else 0 for array in arrays if array is not None}
    wanted = 2 if call.text("direction", "forward") == "bidirectional" else 1
    if counts != {wanted}:
        raise call.invalid(f"its weights are for {sorted(counts)} directions, not for {wanted}")


def _biases(bias: mx.array | None, place: int, size: int) -> tuple[mx.array | None, mx.array | None]:
    return (None, None) if bias is None else (bias[place, :size], bias[place, size:])


def _plus(x: mx.array, bias: mx.array | None) -> mx.array:
    return x if bias is None else x + bias


@op("RNN")
def rnn(
    call: Call,
    x: mx.array,
    w: mx.array,
    r: mx.array,
    b: mx.array | None = None,
    lengths: mx.array | None = None,
    initial: mx.array | None = None,
) -> tuple[mx.array, ...]:
    """A simple recurrent layer."""
    _check_directions(call, w, r, b)
    hidden = r.shape[-1]
    functions, clip = _activations(call, ["Tanh"], w.shape[0]), _clipped(call)

    def cell(place: int, source: mx.array) -> tuple[mx.array, Step]:
        (activate,) = functions[place]
        first, second = _biases(b, place, hidden)
        recurrence = mx.transpose(r[place])
        gates = _plus(_plus(mx.matmul(source, mx.transpose(w[place])), first), second)
        return gates, lambda gate, states: (activate(clip(gate + mx.matmul(states[0], recurrence))),)

    return _layer(call, x, hidden, [initial], lengths, cell)


@op("GRU")
def gru(
    call: Call,
    x: mx.array,
    w: mx.array,
    r: mx.array,
    b: mx.array | None = None,
    lengths: mx.array | None = None,
    initial: mx.array | None = None,
) -> tuple[mx.array, ...]:
    """A layer of gated recurrent units."""
    _check_directions(call, w, r, b)
    n = r.shape[-1]
    functions, clip = _activations(call, ["Sigmoid", "Tanh"], w.shape[0]), _clipped(call)
    linear_first = call.flag("linear_before_reset")

    def cell(place: int, source: mx.array) -> tuple[mx.array, Step]:
        f, g = functions[place]
        first, second = _biases(b, place, 3 * n)
        gates_r, hidden_r = mx.transpose(r[place, : 2 * n]), mx.transpose(r[place, 2 * n :])
        bias_r, bias_h = (None, None) if second is None else (second[: 2 * n], second[2 * n :])

        def step(gate: mx.array, states: States) -> States:
            (h,) = states
            zr = f(clip(gate[:, : 2 * n] + _plus(mx.matmul(h, gates_r), bias_r)))
            z, reset = zr[:, :n], zr[:, n:]
            if linear_first:
                inner = reset * _plus(mx.matmul(h, hidden_r), bias_h)
            else:
                inner = _plus(mx.matmul(reset * h, hidden_r), bias_h)
            new = g(clip(gate[:, 2 * n :] + inner))
            return ((const(1, z) - z) * new + z * h,)

        return _plus(mx.matmul(source, mx.transpose(w[place])), first), step

    return _layer(call, x, n, [initial], lengths, cell)


@op("LSTM")
def lstm(
    call: Call,
    x: mx.array,
    w: mx.array,
    r: mx.array,
    b: mx.array | None = None,
    lengths: mx.array | None = None,
    initial_h: mx.array | None = None,
    initial_c: mx.array | None = None,
    peepholes: mx.array | None = None,
) -> tuple[mx.array, ...]:
    """A layer of long short-term memory."""
    _check_directions(call, w, r, b, peepholes)
    n = r.shape[-1]
    functions, clip = _activations(call, ["Sigmoid", "Tanh", "Tanh"], w.shape[0]), _clipped(call)
    coupled = call.flag("input_forget")

    def cell(place: int, source: mx.array) -> tuple[mx.array, Step]:
        f, g, h = functions[place]
        first, second = _biases(b, place, 4 * n)
        recurrence = mx.transpose(r[place])
        peek = None if peepholes is None else mx.split(peepholes[place], 3)

        def step(gate: mx.array, states: States) -> States:
            hidden, memory = states
            i, o, forget, c = mx.split(gate + mx.matmul(hidden, recurrence), 4, axis=-1)
            if peek is not None:
                i, forget = i + peek[0] * memory, forget + peek[2] * memory
            i = f(clip(i))
            forget = const(1, i) - i if coupled else f(clip(forget))
            memory = forget * memory + i * g(clip(c))
            o = o if peek is None else o + peek[1] * memory
            return f(clip(o)) * h(memory), memory

        return _plus(_plus(mx.matmul(source, mx.transpose(w[place])), first), second), step

    return _layer(call, x, n, [initial_h, initial_c], lengths, cell)


@op("LinearAttention")
def linear_attention(
    call: Call,
    query: mx.array,
    key: mx.array,
    value: mx.array,
    past: mx.array | None = None,
    decay: mx.array | None = None,
    beta: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Attention without softmax, as a recurrence over a matrix for each head; computed in float32."""
    rule = call.text("update_rule", "gated_delta")
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        raise call.invalid(f"update_rule {rule!r} is unknown")
    heads, kv_heads = call.integer("q_num_heads"), call.integer("kv_num_heads")
    most = max(heads, kv_heads)
    if (
        min(heads, kv_heads) < 1
        or most % heads
        or most % kv_heads
        or ("gated" in rule) != (decay is not None)
        or ("delta" in rule) != (beta is not None)
    ):
        raise call.invalid("its heads, decay and beta do not fit its update_rule")
    q, k, v = (
        split_heads(call, x, count).astype(mx.float32)
        for x, count in ((query, heads), (key, kv_heads), (value, kv_heads))
    )
    width = q.shape[-1]
    q = q if heads == most else mx.repeat(q, most // heads, axis=1)
    scale = call.number("scale", 0.0) or 1 / math.sqrt(width)
    state = mx.zeros((*k.shape[:2], width, v.shape[-1])) if past is None else past.astype(mx.float32)
    gate = None if decay is None else mx.exp(split_heads(call, decay, kv_heads).astype(mx.float32))
    rate = None if beta is None else mx.transpose(beta.astype(mx.float32)[..., None], (0, 2, 1, 3))
    result, state = recurrence(call, q, k, v, state, gate, rate)
    result = merge_heads(result * mx.array(scale))
    return result.astype(query.dtype), state.astype(query.dtype if past is None else past.dtype)


def recurrence(
    call: Call,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    state: mx.array,
    gate: mx.array | None,
    rate: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """What each query sees of a matrix that every key and value changes, and the last one.

    `[batch, heads, steps, width]` arrays in float32, of which q may have more heads; `gate` is what is kept of the
    matrix at each step, and `rate` how much of what it says of a key is replaced by the value.
    """
    outputs = []
    for step in range(q.shape[2]):
        now = slice(step, step + 1)
        column, row = mx.swapaxes(k[:, :, now], 2, 3), v[:, :, now]
        if gate is not None:
            state = state * mx.swapaxes(gate[:, :, now], 2, 3)
        if rate is not None:
            row = rate[:, :, now] * (row - mx.matmul(k[:, :, now], state))
        state = state + column * row
        seen = state if q.shape[1] == k.shape[1] else mx.repeat(state, q.shape[1] // k.shape[1], axis=1)
        outputs.append(mx.matmul(q[:, :, now], seen))
    if not outputs:
        raise call.invalid("it has no steps")
    return mx.concatenate(outputs, axis=2), state
