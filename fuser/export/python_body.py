"""The statements of one module's call: what is used once is written where it is used, the rest has a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx

from fuser.export.python_dims import Dims
from fuser.export.python_format import WIDTH, quoted, wrapped
from fuser.export.python_hints import plain, roles, strong
from fuser.export.python_ir import CONST, INPUT, LEAVES, NUMBER, Op, ordered
from fuser.export.python_modules import SPOKEN, Loop, Module, identifier
from fuser.export.python_rules import FLOATS
from fuser.export.python_spell import Text, dtype_name, literal, spell

# an expression of more parts than this is taken apart
PARTS = 5


@dataclass(frozen=True)
class Class:
    """A module's class as others call it."""

    name: str
    parameters: tuple[str, ...]
    results: tuple[str, ...]


@dataclass
class Body:
    """Writes the statements of one module."""

    module: Module
    dims: Dims
    attributes: Callable[[Op | Module | Loop], str]
    classes: Mapping[Module, Class]
    results: Sequence[Op]
    root: bool = False
    labels: Sequence[str] = ()
    """What the results of the whole model are called."""
    lines: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    result_names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names: dict[Any, str] = {}
        self._owner: dict[str, Any] = {}
        self._written: set[Any] = set()
        self._maker: dict[Op, Module | Loop] = {}
        for child in self.module.children:
            self._maker.update(dict.fromkeys(child.outputs, child))
        for loop in self.module.loops:
            self._maker.update({op: loop for child in loop.children for op in child.outputs})
        own = set(self.module.ops)
        order = [op for op in ordered(self.results) if op in own]
        self._users: dict[Op, list[Any]] = {}
        for op in self.module.ops:
            for arg in op.args:
                self._users.setdefault(arg, []).append(op)
        for child in self.module.children:
            for arg in child.inputs:
                self._users.setdefault(arg, []).append(child)
        for loop in self.module.loops:
            for child in loop.children:
                for arg in child.inputs:
                    self._users.setdefault(arg, []).append(loop)
        for op in self.results:
            self._users.setdefault(op, []).append("return")
        called: dict[Op, str] = {}
        for child in [*self.module.children, *(each for loop in self.module.loops for each in loop.children)]:
            for arg, name in zip(child.inputs, self.classes[child].parameters, strict=True):
                if name not in ("x", "y", "z", "index"):
                    called.setdefault(arg, name)
        self._roles = roles(order, called)
        self._reserved = self.dims.names() | SPOKEN

    # -- names -----------------------------------------------------------------------------------------------------

    def arguments(self, inputs: Sequence[Op]) -> list[Op]:
        """Name the arguments; what has no name of its own comes first."""
        named = [(op, self._roles.get(op) or strong(op)) for op in inputs]
        if self.root:
            ordered_inputs = [op for op, _ in named]
        else:
            ordered_inputs = [op for op, name in named if name is None] + [op for op, name in named if name is not None]
        hints = dict(named)
        for op in ordered_inputs:
            hint = str(op.attrs[0]) if self.root else hints[op] or _unnamed(op)
            self.parameters.append(self._name(op, identifier(hint), frozenset()))
        return ordered_inputs

    def _free(self, name: str, after: frozenset[Any]) -> bool:
        if name in self._reserved:
            return False
        owner = self._owner.get(name)
        if owner is None:
            return True
        return all(user in self._written or user in after for user in self._users.get(owner, ()))

    def _name(self, value: Any, hint: str, after: frozenset[Any]) -> str:
        spare = {"x": ("x", "y", "z", "h"), "keep": ("keep", "allowed", "visible")}.get(hint, (hint,))
        names = [*spare, *(f"{hint}{n}" if hint == "x" else f"{hint}_{n}" for n in range(2, 999))]
        name = next(each for each in names if self._free(each, after))
        old = self._owner.get(name)
        if old is not None:
            self._names.pop(old, None)
        self._names[value] = name
        self._owner[name] = value
        return name

    def _hint(self, op: Op) -> str:
        role = self._roles.get(op)
        if role is not None:
            return identifier(role)
        maker = self._maker.get(op)
        if isinstance(maker, Module):
            name = self.classes[maker].results[maker.outputs.index(op)]
            return identifier(name)
        return identifier(plain(op))

    # -- statements ------------------------------------------------------------------------------------------------

    def write(self) -> list[Text]:
        """All statements; the texts of the results."""
        texts = []
        for place, op in enumerate(self.results):
            text = self.value(op)
            long = self.root and len(f"        return {{{quoted(self.labels[place])}: {text.text}}}") > WIDTH
            if op.kind in (NUMBER, "size"):
                text = Text(f"mx.array({text.text}, dtype={dtype_name(op.dtype)})")
            if text.ops and (len(self.results) > 1 or long):
                text = self._assigned(op, text)
            texts.append(text)
            self.result_names.append(self._hint(op))
        return texts

    def value(self, op: Op) -> Text:
        """How `op` is read: its name, or the expression that computes it where it is used once."""
        if op in self._names:
            return Text(self._names[op])
        if op.kind == NUMBER:
            return Text(literal(op.number, op.dtype), 8 if str(op.number).startswith("-") else 10)
        if op.kind == "size":
            size = self.dims.text(op.attrs[0])
            return Text(size, 6 if " " in size else 10)
        if op.kind == CONST:
            return Text(f"self.{self.attributes(op)}")
        if op.kind == INPUT:
            raise AssertionError(f"{op} is no argument of {self.module.path}")
        maker = self._maker.get(op)
        if isinstance(maker, Loop):
            self._loop(maker)
            return Text(self._names[op])
        if isinstance(maker, Module):
            called = self._called(maker)
            if called is None:
                return Text(self._names[op])
            text = called
        else:
            text = self._computed(op)
        uses = self._users.get(op, [])
        return text if len(uses) == 1 else self._assigned(op, text)

    def _computed(self, op: Op) -> Text:
        args = [self.value(arg) for arg in op.args]
        if op.kind == "full":
            args = args[:1]
        return self._fitted(op, list(op.args), args, lambda texts: spell(op, texts, self.dims, self._attribute(op)))

    def _attribute(self, op: Op) -> str:
        return self.attributes(op) if op.params else ""

    def _fitted(
        self, owner: Any, ops: list[Op], args: list[Text], make: Callable[[list[Text]], tuple[str, int]]
    ) -> Text:
        """The expression of the arguments, the longest of which get names until it is short enough."""
        room = WIDTH - 14 - (len(self._hint(owner)) if isinstance(owner, Op) else 12)
        while True:
            text, level = make(args)
            parts = frozenset([owner]).union(*(arg.ops for arg in args))
            heavy = [place for place, arg in enumerate(args) if arg.ops and self._worth(ops[place])]
            if not heavy or (len(text) <= room and len(parts) <= PARTS):
                return Text(text, level, parts)
            place = max(heavy, key=lambda each: (len(args[each].ops), len(args[each].text)))
            args[place] = self._assigned(ops[place], args[place])

    def _worth(self, op: Op) -> bool:
        return op.kind not in LEAVES

    def _assigned(self, op: Op, text: Text) -> Text:
        name = self._name(op, self._hint(op), text.ops)
        self._written |= text.ops
        shape = ", ".join(self.dims.shown(dim) for dim in op.shape)
        self._statement(f"{name} = {text.text}", f"  # [{shape}]" if op.ndim else "")
        return Text(name)

    def _statement(self, text: str, comment: str = "", indent: int = 8) -> None:
        self.lines += wrapped(text, indent, comment)

    # -- calls of modules ------------------------------------------------------------------------------------------

    def _called(self, child: Module) -> Text | None:
        """The call of a module: an expression when it has one result, else written and its results named."""
        if any(op in self._names for op in child.outputs) or child in self._written:
            return None
        args = [self.value(arg) for arg in child.inputs]
        attribute = self.attributes(child)
        text = self._fitted(
            child, list(child.inputs), args, lambda texts: (f"self.{attribute}({', '.join(t.text for t in texts)})", 10)
        )
        if len(child.outputs) == 1:
            return text
        self._written |= text.ops
        names = [self._name(op, self._hint(op), frozenset()) for op in child.outputs]
        self._statement(f"{', '.join(names)} = {text.text}")
        return None

    def _loop(self, loop: Loop) -> None:
        """A list of modules called one after the other, each on what the one before it gave."""
        children = loop.children
        first = children[0]
        rows = list(zip(*(child.inputs for child in children), strict=True))
        carried = {
            place: next(
                (
                    j
                    for j in range(len(first.outputs))
                    if all(row[k + 1] is c.outputs[j] for k, c in enumerate(children[:-1]))
                ),
                None,
            )
            for place, row in enumerate(rows)
        }
        texts: list[str] = []
        zipped: list[tuple[str, str]] = []
        starts: list[tuple[int, Text]] = []
        for place, row in enumerate(rows):
            if carried[place] is None and any(op is not row[0] for op in row):
                values = [self._named(op) for op in row]
                variable = self._name((loop, place), identifier(self.classes[first].parameters[place]), frozenset())
                zipped.append((variable, f"[{', '.join(values)}]"))
                texts.append(variable)
            elif carried[place] is None:
                texts.append(self._named(row[0]))
            else:
                starts.append((place, self.value(row[0])))
                texts.append("")
        targets = {}
        for place, start in starts:
            output = carried[place]
            assert output is not None
            name = self._begun(loop, rows[place][0], start)
            self._names[children[-1].outputs[output]] = name
            self._owner[name] = children[-1].outputs[output]
            texts[place] = targets[output] = name
        collected = {}
        for output in range(len(first.outputs)):
            if output in targets:
                continue
            listed = self._name(
                (loop, "all", output), identifier(f"all_{self._hint(first.outputs[output])}"), frozenset()
            )
            self._statement(f"{listed}: list[mx.array] = []")
            targets[output] = self._name((loop, output), self._hint(first.outputs[output]), frozenset())
            collected[output] = listed
            for k, child in enumerate(children):
                self._names[child.outputs[output]] = f"{listed}[{k}]"
        heads = ["layer", *(variable for variable, _ in zipped)]
        over = f"self.{self.attributes(loop)}"
        if zipped:
            over = f"zip({', '.join([over, *(values for _, values in zipped)])}, strict=True)"
        self.lines += wrapped(f"for {', '.join(heads)} in {over}:", 8)
        left = ", ".join(targets[output] for output in range(len(first.outputs)))
        self._statement(f"{left} = layer({', '.join(texts)})", indent=12)
        for output, listed in collected.items():
            self._statement(f"{listed}.append({targets[output]})", indent=12)
        self._written.add(loop)

    def _begun(self, loop: Loop, op: Op, start: Text) -> str:
        """The name that a loop changes, which holds what it starts from."""
        others = [user for user in self._users.get(op, ()) if user is not loop and user not in self._written]
        if self._names.get(op) == start.text and not others:
            del self._names[op]
            return start.text
        name = self._name((loop, op), self._hint(op), start.ops)
        self._written |= start.ops
        self._statement(f"{name} = {start.text}")
        return name

    def _named(self, op: Op) -> str:
        text = self.value(op)
        return self._assigned(op, text).text if text.ops else text.text


def _unnamed(op: Op) -> str:
    if op.dtype == mx.bool_:
        return "keep"
    return "x" if op.dtype in FLOATS else "index"
