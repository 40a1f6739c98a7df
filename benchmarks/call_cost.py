"""What calling an optimized function costs, once it is traced, beside `mx.compile` of the same.

    python benchmarks/call_cost.py [--rounds N]

Calls of the two take turns in one process; a line has what the fastest tenth took at most (other programs on the
machine disturb it least), the difference, and the ratio. `call` is the call alone, which builds a lazy graph; `run`
waits for the answer, too. Then 10,000 calls, whose peak memory must not grow, and the same from two threads at once.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn

import fuser


class Program(NamedTuple):
    """Something to call."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    compiled: Callable[..., Any]
    """What it is measured against."""


class Layer(nn.Module):
    """A decoder's layer with its attention spelled out."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.second = nn.RMSNorm(size), nn.RMSNorm(size)
        self.q, self.k, self.v, self.o = (nn.Linear(size, size, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(size, 4 * size, bias=False), nn.Linear(4 * size, size, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        batch, length, size = x.shape
        h = self.norm(x)
        q, k, v = (p(h).reshape(batch, length, self.heads, -1).transpose(0, 2, 1, 3) for p in (self.q, self.k, self.v))
        weights = mx.softmax(q @ k.swapaxes(-1, -2) * (size // self.heads) ** -0.5, axis=-1)
        x = x + self.o((weights @ v).transpose(0, 2, 1, 3).reshape(batch, length, size))
        return x + self.down(nn.gelu(self.up(self.second(x))))


class Model(nn.Module):
    """A small decoder."""

    def __init__(self, layers: int = 12, size: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, size)
        self.layers = [Layer(size, heads) for _ in range(layers)]

    def __call__(self, tokens: mx.array) -> mx.array:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.embed.as_linear(x)


def programs() -> Iterator[Program]:
    """What is measured."""
    x = mx.ones((4, 4))

    def trivial(x: mx.array) -> mx.array:
        return x + 1

    def nested(tree: dict[str, Any], scale: float = 2.0) -> dict[str, Any]:
        return {"a": tree["a"] * scale, "b": [tree["b"][0] + tree["a"]]}

    yield Program("trivial", trivial, (x,), mx.compile(trivial))
    yield Program("trees and statics", nested, ({"a": x, "b": [x]}, 3.0), mx.compile(nested))
    for layers in (1, 12):
        model = Model(layers)
        model.eval()
        mx.eval(model.parameters())
        tokens = mx.array([[1, 2, 3, 4, 5, 6, 7, 8]])
        # weights that are constants, as who compiles a model mostly has them
        yield Program(f"{layers} layers", model, (tokens,), mx.compile(lambda t, model=model: model(t)))
        state = mx.compile(lambda t, model=model: model(t), inputs=model.state)
        yield Program(f"{layers} layers, weights as inputs", model, (tokens,), state)


def fastest(
    function: Callable[..., Any], other: Callable[..., Any], args: Any, rounds: int, wait: bool
) -> tuple[float, float]:
    """Microseconds below which a tenth of the calls stays; the two take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(2 * rounds):
        which = number % 2
        start = time.perf_counter()
        result = (function, other)[which](*args)
        if wait:
            mx.eval(result)
        times[which].append(time.perf_counter() - start)
        if not wait:
            mx.eval(result)
    ours, theirs = (statistics.quantiles(each, n=10)[0] * 1e6 for each in times)
    return ours, theirs


def steady(calls: int = 10_000) -> None:
    """What memory many calls take, and whether two threads get the right answers."""
    model, tokens = Model(2), [mx.array([[1, 2, 3, 4, 5, 6, 7, number]]) for number in range(4)]
    wanted = [model(each) for each in tokens]
    fast = fuser.optimize(model)
    mx.eval(wanted, [fast(each) for each in tokens])
    wrong: list[int] = []

    def work(count: int) -> None:
        for number in range(count):
            which = number % len(tokens)
            found = fast(tokens[which])
            if number % 100 == 0 and not mx.allclose(found, wanted[which], atol=1e-4).item():
                wrong.append(number)
            mx.eval(found)

    for name, threads in (("one thread", 1), ("two threads", 2)):
        peaks = []
        for count in (calls // 10, calls):
            mx.reset_peak_memory()
            workers = [threading.Thread(target=work, args=(count // threads,)) for _ in range(threads)]
            for each in workers:
                each.start()
            for each in workers:
                each.join()
            peaks.append((mx.get_peak_memory() / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3))
        (early, was), (late, now) = peaks
        print(f"{calls} calls from {name}: MLX's peak {early:.2f} MB, then {late:.2f} MB;", end=" ")
        print(f"the process at most {was:.0f} MB, then {now:.0f} MB; {len(wrong)} wrong answers; {fast.traces} trace")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    print(f"{'':34} {'fuser':>10} {'mx.compile':>10} {'more':>8} {'ratio':>6}")
    for program in programs():
        fast = fuser.optimize(program.function)
        mx.eval(fast(*program.args), program.compiled(*program.args))
        for what, wait in (("call", False), ("run", True)):
            fastest(fast, program.compiled, program.args, 20, wait)
            ours, theirs = fastest(fast, program.compiled, program.args, rounds, wait)
            label = f"{program.name}: {what}"
            print(f"{label:34} {ours:8.1f}us {theirs:8.1f}us {ours - theirs:6.1f}us {ours / theirs:6.3f}")
    steady()


if __name__ == "__main__":
    main()
