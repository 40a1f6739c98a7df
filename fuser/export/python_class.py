"""The classes of a program, equal ones written once, and the weights under the names that they load them by."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import mlx.core as mx
import mlx.nn as nn

from fuser.export.python_body import Body, Class
from fuser.export.python_dims import Dims, Unnamed
from fuser.export.python_format import WIDTH, quoted, signature, wrapped
from fuser.export.python_ir import CONST, INPUT, LAYERS, Dim, Op, ordered
from fuser.export.python_modules import SPOKEN, Loop, Module, Tree, identifier
from fuser.export.python_repeats import Path
from fuser.export.python_spell import constructed, stored

TAKEN = set(dir(nn.Module))
_CLASS_NAMES = {"self": "SelfAttention", "attn": "Attention", "mlp": "MLP", "ffn": "FeedForward"}


class NotAlike(Exception):
    """Modules that were to be one class are not."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


class NeedsSize(Exception):
    """A module needs a size that none of its arguments tells."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path = path


class Classes:
    """Writes the classes of a tree."""

    def __init__(
        self,
        tree: Tree,
        symbols: Mapping[Dim, str],
        root: str,
        outputs: Mapping[str, Op],
        frozen: Mapping[str, Sequence[tuple[int, int]]],
    ) -> None:
        self._tree = tree
        self._symbols = symbols
        self._root = root
        self._outputs = outputs
        self._frozen = frozen
        self._by_text: dict[str, Class] = {}
        self._of: dict[Module, Class] = {}
        self._named = {root, *SPOKEN}
        self.sources: list[str] = []
        self.weights: dict[str, mx.array] = {}
        everything = ordered(list(outputs.values()))
        self._order = {op: place for place, op in enumerate(everything)}
        self._reads = {arg: self._order[op] for op in reversed(everything) for arg in op.args}
        self._visit(tree.root, "")

    def _visit(self, module: Module, prefix: str) -> None:
        names = _Attributes()
        for child in module.children:
            self._visit(child, f"{prefix}{names(child)}.")
        for loop in module.loops:
            for number, child in enumerate(loop.children):
                self._visit(child, f"{prefix}{names(loop)}.{number}.")
            if len({self._of[child] for child in loop.children}) != 1:
                raise NotAlike(loop.path)
        self._of[module] = self._class(module, names)
        for op in names.made:
            if isinstance(op, Op):
                arrays = {"": op.array} if op.kind == CONST else op.params
                for name, array in arrays.items():
                    assert array is not None
                    self.weights[f"{prefix}{names(op)}{'.' if name else ''}{name}"] = array

    def _class(self, module: Module, names: _Attributes) -> Class:
        root = module is self._tree.root
        results = list(self._outputs.values()) if root else module.outputs
        inputs = self._inputs() if root else module.inputs
        dims = Dims(inputs, self._symbols)
        body = Body(module, dims, names, self._of, results, root, list(self._outputs))
        arguments = body.arguments(inputs)
        module.inputs = arguments
        try:
            texts = body.write()
        except Unnamed:
            if root:
                raise
            raise NeedsSize(module.path) from None
        named = dict(zip(arguments, body.parameters, strict=True))
        head = ["    def __init__(self) -> None:", "        super().__init__()"]
        for item in sorted(names.made, key=self._place):
            head += wrapped(f"self.{names(item)} = {self._made(item)}", 8)
        kind = "mx.array" if len(results) == 1 else f"tuple[{', '.join(['mx.array'] * len(results))}]"
        if len(kind) > 60:
            kind = "tuple[mx.array, ...]"
        parameters = [f"{name}: mx.array" for name in body.parameters]
        lines = [*head, ""]
        if root:
            parameters, entry = self._entered(named, parameters)
        else:
            entry = []
        lines += signature("__call__", ["self", *parameters], "dict[str, mx.array]" if root else kind)
        lines += entry
        lines += [f"        {line}" for line in dims.lines(named)]
        lines += body.lines
        if root:
            lines += _returned(dict(zip(self._outputs, (text.text for text in texts), strict=True)))
        else:
            lines += wrapped(f"return {', '.join(text.text for text in texts)}", 8)
        text = "\n".join(lines)
        key = self._nameless(text)
        found = self._by_text.get(key)
        if found is None or root:
            name = self._root if root else self._class_name(module)
            found = Class(name, tuple(body.parameters), tuple(body.result_names))
            self._by_text[key] = found
            self.sources.append(f"class {name}(nn.Module):\n    {self._docstring(module)}\n\n{text}\n")
        return found

    def _entered(self, named: Mapping[Op, str], parameters: list[str]) -> tuple[list[str], list[str]]:
        """The parameters of the whole model, and the statements that check them."""
        lines = []
        if any(op.attrs[0] != name for op, name in named.items()):
            # names that Python does not have
            lines += [
                line for op, name in named.items() for line in wrapped(f"{name} = inputs[{quoted(op.attrs[0])}]", 8)
            ]
            parameters = ["**inputs: mx.array"]
        for op, name in named.items():
            for axis, size in self._frozen.get(op.attrs[0], ()):
                lines.append(f"        if {name}.shape[{axis}] != {size}:")
                lines += wrapped(f'raise ValueError("{name} must have size {size} on axis {axis}")', 12)
        return parameters, lines

    def _nameless(self, text: str) -> str:
        """The text of a class whatever its sizes are called: a decoder's attention may be an encoder's."""
        seen: dict[str, str] = {}
        names = "|".join(map(re.escape, sorted(self._symbols.values(), key=len, reverse=True)))
        if not names:
            return text
        return re.sub(rf"\b({names})\b", lambda found: seen.setdefault(found[1], f"<{len(seen)}>"), text)

    def _place(self, item: Op | Module | Loop) -> int:
        """Where it is used first."""
        if isinstance(item, Op) and item.kind == CONST:
            return self._reads.get(item, 0)
        ops = (
            item.all_ops if isinstance(item, Module) else item.children[0].all_ops if isinstance(item, Loop) else [item]
        )
        return min(self._order[op] for op in ops)

    def _inputs(self) -> list[Op]:
        found = {op.attrs[0]: op for op in self._tree.inputs if op.kind == INPUT}
        return list(found.values())

    def _made(self, item: Op | Module | Loop) -> str:
        if isinstance(item, Module):
            return f"{self._of[item].name}()"
        if isinstance(item, Loop):
            return f"[{self._of[item.children[0]].name}() for _ in range({len(item.children)})]"
        return constructed(item) if item.kind in LAYERS else stored(item)

    def _docstring(self, module: Module) -> str:
        if module is self._tree.root:
            return '"""The whole model."""'
        path = ".".join(
            "*" if part.isdigit() and module.path[:n] in self._tree.repeats else part
            for n, part in enumerate(module.path)
        )
        text = f'"""`{path}`"""'
        return text if len(text) <= WIDTH - 4 else '"""A part of the model."""'

    def _class_name(self, module: Module) -> str:
        path = module.path
        words = [part for part in path if not part.isdigit()]
        listed = path[-1].isdigit()
        if listed and path[:-1] not in self._tree.repeats and len(module.children) == 1:
            # one of several different things in a list: it is named after what it holds
            words, listed = [*words[:-1], f"{self._of[module.children[0]].name}_{singular(words[-1])}"], False
        name = ""
        for word in reversed(words):
            if name and word.lower() in _VAGUE:
                continue
            piece = _CLASS_NAMES.get(word.lower()) or camel(singular(word) if listed and not name else word)
            piece = re.sub(r"Attn(?=[A-Z0-9]|$)", "Attention", piece)
            name = piece if name.startswith(piece) else piece + name
            if name not in self._named and name.lower() not in _VAGUE:
                break
        else:
            name = self._root + name if self._root + name not in self._named else name
        stem, number = name, 2
        while name in self._named:
            name, number = f"{stem}{number}", number + 1
        self._named.add(name)
        return name


_VAGUE = ("output", "layer", "dense", "module", "model")


class _Attributes:
    """The attributes of one class, named as they are first used."""

    def __init__(self) -> None:
        self.made: dict[Op | Module | Loop, str] = {}

    def __call__(self, item: Op | Module | Loop) -> str:
        if item not in self.made:
            if isinstance(item, Op):
                hint = item.name or ("table" if item.kind == CONST else item.kind)
            else:
                listed = isinstance(item, Module) and item.path[-1].isdigit()
                hint = "_".join(item.path[-2:]) if listed else item.path[-1]
            base = identifier(snake(identifier(_short(hint), "layer")))
            base = f"{base}_" if base in TAKEN else base
            taken, name, number = set(self.made.values()), base, 2
            while name in taken:
                name, number = f"{base}_{number}", number + 1
            self.made[item] = name
        return self.made[item]


def _returned(results: Mapping[str, str]) -> list[str]:
    parts = [f"{quoted(name)}: {text}" for name, text in results.items()]
    one = f"        return {{{', '.join(parts)}}}"
    if len(one) <= WIDTH:
        return [one]
    return ["        return {", *(f"            {part}," for part in parts), "        }"]


def camel(text: str) -> str:
    """`SelfAttn` for `self_attn`; capitals inside a word stay."""
    return "".join(part[:1].upper() + part[1:] for part in identifier(text, "part").split("_") if part) or "Part"


def _short(name: str) -> str:
    """The last words of a long name."""
    words = name.split("_")
    while len("_".join(words)) > 32 and len(words) > 1:
        words = words[1:]
    return "_".join(words)


def snake(text: str) -> str:
    """`layer_norm` for `LayerNorm`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text).lower()


def singular(word: str) -> str:
    """`layer` for `layers`."""
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
