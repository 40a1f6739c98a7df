"""`fuser.optimize` over many calls: from threads, without leaks, with a bounded number of traces."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.utils

import fuser
from tests.programs_base import Net, X, arrays, attention, same


def in_threads(work: Callable[[int], None], count: int = 4) -> None:
    """Run `work` in threads at once; what one of them raises comes out."""
    errors: list[BaseException] = []
    barrier = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            barrier.wait(timeout=60)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


def test_threads() -> None:
    net = Net()
    fast = fuser.optimize(net)
    inputs = [arrays((1, length, 32), seed=length)[0] for length in (3, 4, 5)]
    wanted = [net(x) for x in inputs]
    mx.eval(wanted, inputs, net.parameters())

    def work(number: int) -> None:
        for round in range(12):
            which = (number + round) % len(inputs)
            same(fast(inputs[which]), wanted[which])

    in_threads(work)
    assert fast.traces <= 6
    same(fast(inputs[0]), wanted[0])
    assert fast.report.counts["fused"] == 2


def test_threads_of_a_program_that_is_not_traced() -> None:
    net = Net()

    def program(x: mx.array) -> Any:
        y = net(x)
        return y if mx.sum(y) > 0 else -y

    fast, plain = fuser.optimize(program), fuser.optimize(net)
    inputs = [arrays((1, length, 32), seed=length)[0] for length in (3, 4, 5)]
    wanted, nets = [program(x) for x in inputs], [net(x) for x in inputs]
    mx.eval(wanted, nets)

    def work(number: int) -> None:
        for round in range(8):
            which = (number + round) % len(inputs)
            same(fast(inputs[which]), wanted[which])
            same(plain(inputs[which]), nets[which])

    in_threads(work)


def test_memory_stays() -> None:
    net = Net()
    fast = fuser.optimize(net)

    def calls(count: int) -> None:
        for number in range(count):
            y = fast(X)
            if number % 100 == 0:
                mx.eval(y)
        mx.eval(y)

    calls(200)
    del_before = mx.get_active_memory()
    calls(10_000)
    assert mx.get_active_memory() <= del_before + 4096
    assert fast.traces == 1


def test_memory_stays_when_weights_change() -> None:
    net = Net()
    fast = fuser.optimize(net)

    def calls(count: int) -> None:
        for _ in range(count):
            net.update(mlx.utils.tree_map(lambda p: p * 1.0, net.parameters()))
            mx.eval(fast(X), net.parameters())

    calls(20)
    before = mx.get_active_memory()
    calls(100)
    assert mx.get_active_memory() <= before + 4096
    assert fast.traces == 1


def test_the_cache_is_bounded() -> None:
    fast = fuser.optimize(attention)
    for length in range(1, 100):
        x = mx.ones((1, 1, length, 4))
        for _ in range(2):
            fast(x, x, x)
    assert fast.traces == 99
    assert len(fast._entries) <= 64
    x = mx.ones((1, 1, 99, 4))
    same(fast(x, x, x), attention(x, x, x))
    assert fast.traces == 99


def test_a_mask_that_was_relied_on_is_watched() -> None:
    mask = mx.triu(mx.full((5, 5), -mx.inf), 1)

    def program(x: mx.array) -> Any:
        return mx.softmax(x @ x.swapaxes(-1, -2) + mask, axis=-1) @ x

    fast = fuser.optimize(program)
    same(fast(X), program(X))
    assert fast.report.regions[0].mask == "causal"
    mask[0, 4] = 0.0
    same(fast(X), program(X))
    mask = mx.zeros((5, 5))
    same(fast(X), program(X))
    mask = mask.astype(mx.bfloat16)
    same(fast(X), program(X))
