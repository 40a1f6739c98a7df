"""The tree of modules that the program becomes, each with its operations, arguments and results."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from fuser.export.python_ir import CONST, INPUT, LAYERS, LEAVES, Op, ordered, users
from fuser.export.python_repeats import Path, Repeat, settle, within


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
            if tangled is None:
                self._connect(root)
                return root
            if tangled in self.repeats:
                del self.repeats[tangled]
                continue
            self._free(tangled)

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

    def _tangled(self, module: Module) -> Path | None:
        """A module (or list) that would have to be called before it has its arguments."""
        items: list[tuple[Path | None, set[Op]]] = [(None, {op}) for op in module.ops]
        items += [(child.path, set(child.all_ops)) for child in module.children]
        items += [(loop.path, {op for child in loop.children for op in child.all_ops}) for loop in module.loops]
        owner = {op: place for place, (_, ops) in enumerate(items) for op in ops}
        reads = [
            {owner[arg] for op in ops for arg in op.args if arg in owner} - {place}
            for place, (_, ops) in enumerate(items)
        ]
        done: set[int] = set()
        waiting = set(range(len(items)))
        while True:
            ready = {place for place in waiting if reads[place] <= done}
            if not ready:
                break
            done |= ready
            waiting -= ready
        stuck = [items[place] for place in waiting if items[place][0] is not None]
        if stuck:
            return min(stuck, key=lambda item: len(item[1]))[0]
        for child in [*module.children, *(child for loop in module.loops for child in loop.children)]:
            found = self._tangled(child)
            if found is not None:
                return found
        return None

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
        owned = any(len(path) == 1 and any(op.path == path and op.kind in LAYERS for op in ops) for path in paths)
        if len(heads) != 1 or owned or any(len(path) > 1 and path[1].isdigit() for path in paths):
            return
        for op in ops:
            op.path = op.path[1:]


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


def identifier(text: str, fallback: str = "x") -> str:
    """`text` as a Python name."""
    name = re.sub(r"\W+", "_", text).strip("_")
    if not name or name[0].isdigit():
        name = f"{fallback}_{name}".rstrip("_")
    return f"{name}_" if keyword.iskeyword(name) else name


__all__ = ["Loop", "Module", "Path", "Repeat", "Tree", "identifier"]
