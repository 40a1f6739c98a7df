"""The tree of modules that the program becomes, each with its operations, arguments and results."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fuser.export.python_ir import CONST, INPUT, LAYERS, LEAVES, Op, ordered, users
from fuser.export.python_repeats import Path, settle, within


@dataclass(eq=False)
class Module:
    """One module: what it computes itself, and the modules in it."""

    path: Path
    ops: list[Op] = field(default_factory=list)
    children: list[Module] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    inputs: list[Op] = field(default_factory=list)
    outputs: list[Op] = field(default_factory=list)

    @property
    def all_ops(self) -> list[Op]:
        """Its operations, with those of the modules in it."""
        below = [*self.children, *(child for loop in self.loops for child in loop.children)]
        return self.ops + [op for child in below for op in child.all_ops]


@dataclass(eq=False)
class Loop:
    """A list of equal modules, called one after the other."""

    path: Path
    children: list[Module]


class Tree:
    """The modules of a program; `outputs` are its results."""

    def __init__(self, outputs: Sequence[Op]) -> None:
        self.results = list(outputs)
        self.inputs: list[Op] = []
        """The inputs of the whole model, in its order."""
        _strip(self._ops())
        self._adopt()
        self.repeats = {repeat.path: repeat for repeat in settle(outputs)}
        self._sink()
        self._collapse()
        self.root = self._build()

    def _ops(self) -> list[Op]:
        return [op for op in ordered(self.results) if op.kind not in LEAVES]

    # -- modules that are no modules -------------------------------------------------------------------------------

    def _collapse(self) -> None:
        """A module of one layer is an attribute, and one of a few plain operations is written where it is called."""
        ops = self._ops()
        changed = True
        while changed:
            changed = False
            paths = {op.path[:n] for op in ops for n in range(1, len(op.path) + 1)}
            for path in sorted(paths, key=len, reverse=True):
                inside = [op for op in ops if within(op.path, path)]
                if not inside or any(op.path != path for op in inside) or path[-1].isdigit():
                    continue
                owners = [op for op in inside if op.kind in LAYERS]
                tables = [op for op in inside if any(arg.kind == CONST for arg in op.args)]
                limit = 2 if owners else 3
                if len(owners) > 1 or len(inside) > limit or (tables and not owners and len(inside) > 1):
                    continue
                for op in inside:
                    if op.kind in LAYERS and not op.name:
                        op.name = path[-1]
                    op.path = path[:-1]
                changed = True

    def _adopt(self) -> None:
        """What has lost its name but lies between two operations of one module belongs to that module."""
        readers = users(self.results)
        ops = self._ops()
        above: dict[Op, Path] = {}
        below: dict[Op, Path] = {}
        for op in ops:
            above[op] = op.path or max((above[arg] for arg in op.args if arg in above), key=len, default=())
        for op in reversed(ops):
            paths = [below[user] for user in readers[op]]
            below[op] = op.path or (_common(paths) if op not in self.results else ())
        for op in ops:
            op.path = op.path or _common([above[op], below[op]])
        for op in ops:
            for arg in op.args:
                for user in readers[op]:
                    shared = _common([arg.path, user.path]) if arg.kind not in LEAVES else ()
                    if len(shared) > len(op.path) and within(shared, op.path) and op not in self.results:
                        op.path = shared

    def _sink(self) -> None:
        """What depends on nothing is computed where it is used, when that is one place."""
        readers = users(self.results)
        for op in reversed(self._ops()):
            places = {user.path for user in readers[op]}
            free = all(arg.kind in LEAVES and arg.kind != INPUT for arg in op.args) and op not in self.results
            if free and len(places) == 1:
                [op.path] = places

    def dissolve(self, path: Path) -> None:
        """Write what a module does where it is called."""
        self._free(path)
        self.root = self._build()

    def _free(self, path: Path) -> None:
        """The module's own operations, and the modules in it, become its caller's."""
        for op in self._ops():
            if op.path == path and op.kind in LAYERS:
                op.name = "_".join([*_last(path), op.name or op.kind])
            op.path = _freed(op.path, path)
        self.repeats = {_freed(key, path): value for key, value in self.repeats.items() if key != path}

    # -- the tree --------------------------------------------------------------------------------------------------

    def _build(self) -> Module:
        while True:
            root = self._grow()
            tangled = self._tangled(root)
            if not tangled:
                self._connect(root)
                return root
            if any(self._hoist(path) for path in tangled):
                continue
            # equal modules with others between them are no loop
            listed = next((path for path in tangled if path in self.repeats), None)
            if listed is not None:
                del self.repeats[listed]
            else:
                self._free(tangled[0])

    def _hoist(self, path: Path) -> bool:
        """Compute in the caller what a module is needed for before it has its own arguments: masks, positions."""
        ops = self._ops()
        inside = {op for op in ops if within(op.path, path)}
        after: set[Op] = set()
        for op in ops:
            if any(arg in after or arg in inside for arg in op.args) and op not in inside:
                after.add(op)
        readers = users(self.results)
        before: set[Op] = set()
        for op in reversed(ops):
            if any(user in before or user in inside for user in readers[op]) and op not in inside:
                before.add(op)
        between = after & before
        early: set[Op] = set()
        for op in reversed(ops):
            if op in inside and any(user in early or user in between for user in readers[op]):
                early.add(op)
        if not early or any(op.kind in LAYERS for op in early):
            return False
        for op in early:
            op.path = path[: len(path) - len(_last(path))]
        return True

    def _grow(self) -> Module:
        root = Module(())
        modules: dict[Path, Module] = {(): root}

        def module(path: Path) -> Module:
            if path not in modules:
                made = modules[path] = Module(path)
                listed = path[-1].isdigit() and len(path) > 1
                owner = module(path[:-2] if listed else path[:-1])
                if listed and path[:-1] in self.repeats:
                    loop = next((each for each in owner.loops if each.path == path[:-1]), None)
                    if loop is None:
                        loop = Loop(path[:-1], [])
                        owner.loops.append(loop)
                    loop.children.append(made)
                    loop.children.sort(key=lambda child: int(child.path[-1]))
                else:
                    owner.children.append(made)
            return modules[path]

        for op in self._ops():
            module(op.path).ops.append(op)
        return root

    def _tangled(self, module: Module) -> list[Path]:
        """The modules (and lists) that would have to be called before they have their arguments, the smallest first."""
        items: list[tuple[Path | None, set[Op]]] = [(None, {op}) for op in module.ops]
        items += [(child.path, set(child.all_ops)) for child in module.children]
        items += [(loop.path, {op for child in loop.children for op in child.all_ops}) for loop in module.loops]
        owner = {op: place for place, (_, ops) in enumerate(items) for op in ops}
        reads = [
            {owner[arg] for op in ops for arg in op.args if arg in owner} - {place}
            for place, (_, ops) in enumerate(items)
        ]
        waiting = set(range(len(items)))
        while True:
            ready = {place for place in waiting if not reads[place] & waiting}
            if not ready:
                break
            waiting -= ready
        stuck = [place for place in waiting if items[place][0] is not None and _reaches(place, reads, waiting)]
        if stuck:
            return [path for place in sorted(stuck, key=lambda each: len(items[each][1])) if (path := items[place][0])]
        for child in [*module.children, *(child for loop in module.loops for child in loop.children)]:
            found = self._tangled(child)
            if found:
                return found
        return []

    def _connect(self, root: Module) -> None:
        readers = users(self.results)
        results = set(self.results)
        place = {op: number for number, op in enumerate(ordered(self.results))}

        def visit(module: Module) -> None:
            inside = set(module.all_ops)
            arguments = {
                arg: None
                for op in sorted(inside, key=place.__getitem__)
                for arg in op.args
                if arg not in inside and (arg.kind not in LEAVES or arg.kind == INPUT)
            }
            module.inputs = list(arguments)
            module.outputs = [
                op
                for op in sorted(inside, key=place.__getitem__)
                if op in results or any(user not in inside for user in readers[op])
            ]
            for child in [*module.children, *(child for loop in module.loops for child in loop.children)]:
                visit(child)

        visit(root)
        root.inputs = []
        root.outputs = list(dict.fromkeys(self.results))


def _strip(ops: Sequence[Op]) -> None:
    """Drop the names of wrappers around the whole model."""
    while True:
        paths = {op.path for op in ops if op.path}
        heads = {path[0] for path in paths}
        deep = any(len(path) > 1 for path in paths)
        if len(heads) != 1 or not deep or any(len(path) > 1 and path[1].isdigit() for path in paths):
            return
        for op in ops:
            op.path = op.path[1:]


def _reaches(start: int, reads: Sequence[set[int]], among: set[int]) -> bool:
    """Whether an item reads, over others, from itself."""
    seen: set[int] = set()
    stack = list(reads[start] & among)
    while stack:
        place = stack.pop()
        if place == start:
            return True
        if place not in seen:
            seen.add(place)
            stack.extend(reads[place] & among)
    return False


def _common(paths: Sequence[Path]) -> Path:
    """The module that all of these are in."""
    shared = paths[0] if paths else ()
    for path in paths[1:]:
        length = next((n for n, pair in enumerate(zip(shared, path, strict=False)) if pair[0] != pair[1]), None)
        shared = shared[: min(len(shared), len(path)) if length is None else length]
    return shared


def _last(path: Path) -> Path:
    """What a module is called in the one that it is in: two parts where it is one of a list."""
    return path[-2:] if path[-1].isdigit() and len(path) > 1 else path[-1:]


def _freed(path: Path, outer: Path) -> Path:
    """The path of something in `outer` when that is no module any more."""
    if not within(path, outer):
        return path
    name, rest = _last(outer), path[len(outer) :]
    above = outer[: len(outer) - len(name)]
    return (*above, "_".join([*name, rest[0]]), *rest[1:]) if rest else above


# what a program says of Python and MLX: no name of its own may hide it
SPOKEN = frozenset({"Path", "mx", "nn", "self", "rotate_half", "load", "layer", *dir(builtins)})


def identifier(text: str, fallback: str = "x") -> str:
    """`text` as a Python name."""
    name = re.sub(r"\W+", "_", text).strip("_")
    if not name or name[0].isdigit():
        name = f"{fallback}_{name}".rstrip("_")
    return f"{name}_" if keyword.iskeyword(name) else name
