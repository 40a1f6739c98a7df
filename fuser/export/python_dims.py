"""Names for sizes inside one function: `batch`, `seq`, `past + seq`, read from the shapes of its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fuser.export.python_ir import Dim, Op, fixed


class Unnamed(Exception):
    """No argument tells a size that the function needs."""


class Dims:
    """The sizes that one function can know, and those that it uses."""

    def __init__(self, inputs: Sequence[Op], symbols: Mapping[Dim, str]) -> None:
        self._inputs = inputs
        self._symbols = symbols
        self._places: dict[Dim, tuple[Op, int]] = {}
        for op in inputs:
            for axis, dim in enumerate(op.shape):
                if not fixed(dim):
                    self._places.setdefault(dim, (op, axis))
        self._names: dict[Dim, str] = {}
        self.used: dict[Dim, str] = {}

    def names(self) -> set[str]:
        """The names that sizes may take."""
        return {self._name(dim) for dim in self._places}

    def text(self, dim: Dim) -> str:
        """An expression for a size."""
        if fixed(dim):
            return str(dim[0])
        if dim in self._places:
            return self._use(dim)
        # sizes with a name of their own come first: `batch * seq` rather than what happens to be equal
        atoms = sorted(self._places, key=lambda each: each not in self._symbols)
        for parts, text in _formulas(dim, atoms):
            return text.format(*map(self._use, parts))
        raise Unnamed(dim)

    def shown(self, dim: Dim) -> str:
        """A size in a comment."""
        if fixed(dim):
            return str(dim[0])
        if dim in self._symbols:
            return self._symbols[dim]
        atoms = [*self._symbols, *(each for each in self._places if each not in self._symbols)]
        for parts, text in _formulas(dim, atoms):
            return text.format(*(self._symbols.get(part) or self._name(part) for part in parts))
        return self._name(dim) if dim in self._places else "?"

    def lines(self, names: Mapping[Op, str]) -> list[str]:
        """The statements that read the sizes used from the shapes of the arguments."""
        lines = []
        for op in self._inputs:
            mine = {axis: name for dim, name in self.used.items() for owner, axis in [self._places[dim]] if owner is op}
            if len(mine) > 1:
                targets = [mine.get(axis, "_") for axis in range(op.ndim)]
                while targets[-1] == "_" and len(targets) > max(mine) + 2:
                    targets.pop()
                short = len(targets) < op.ndim
                lines.append(f"{', '.join(targets)} = {names[op]}.shape" + (f"[:{len(targets)}]" if short else ""))
            elif mine:
                [(axis, name)] = mine.items()
                lines.append(f"{name} = {names[op]}.shape[{axis}]")
        return lines

    def _use(self, dim: Dim) -> str:
        return self.used.setdefault(dim, self._name(dim))

    def _name(self, dim: Dim) -> str:
        if dim in self._symbols:
            return self._symbols[dim]
        if dim not in self._names:
            taken = {*self._symbols.values(), *self._names.values()}
            free = (f"length_{n}" if n else "length" for n in range(len(taken) + 1))
            self._names[dim] = next(name for name in free if name not in taken)
        return self._names[dim]


def _formulas(dim: Dim, atoms: Sequence[Dim]) -> Iterator[tuple[tuple[Dim, ...], str]]:
    """Expressions that give `dim`, the plainest first."""
    for a in atoms:
        extra = {d - n for d, n in zip(dim, a, strict=True)}
        if len(extra) == 1:
            [more] = extra
            yield (a,), "{} + " + str(more) if more > 0 else "{} - " + str(-more)
        if all(n and d % n == 0 for d, n in zip(dim, a, strict=True)):
            factor = {d // n for d, n in zip(dim, a, strict=True)}
            if len(factor) == 1:
                yield (a,), "{} * " + str(factor.pop())
    for i, a in enumerate(atoms):
        for b in atoms[i:]:
            if tuple(x * y for x, y in zip(a, b, strict=True)) == dim:
                yield (a, b), "{} * {}"
            rest = {d - x - y for d, x, y in zip(dim, a, b, strict=True)}
            if len(rest) == 1:
                [more] = rest
                yield (a, b), "{} + {}" + (f" + {more}" if more > 0 else f" - {-more}" if more else "")
            less = {d - x + y for d, x, y in zip(dim, a, b, strict=True)}
            more_ = {d - y + x for d, x, y in zip(dim, a, b, strict=True)}
            if less == {0}:
                yield (a, b), "{} - {}"
            if more_ == {0}:
                yield (b, a), "{} - {}"
    for a in atoms:
        for divisor in (2, 3, 4, 8, 16, 32, 14):
            for before in range(-divisor, divisor + 1):
                shifted = {d - (n + before) // divisor for d, n in zip(dim, a, strict=True)}
                if len(shifted) == 1 and abs(next(iter(shifted))) <= 1:
                    [after] = shifted
                    inner = "{}" if not before else f"({{}} {'+' if before > 0 else '-'} {abs(before)})"
                    tail = f" {'+' if after > 0 else '-'} {abs(after)}" if after else ""
                    yield (a,), f"{inner} // {divisor}{tail}"
    for i, a in enumerate(atoms):
        for b in atoms[i:]:
            products = [x * y for x, y in zip(a, b, strict=True)]
            if all(p and d % p == 0 for d, p in zip(dim, products, strict=True)):
                factor = {d // p for d, p in zip(dim, products, strict=True)}
                if len(factor) == 1:
                    yield (a, b), "{} * {} * " + str(factor.pop())
