"""Lines as a formatter would break them."""

from __future__ import annotations

import json

WIDTH = 88


def wrapped(text: str, indent: int, comment: str = "") -> list[str]:
    """A statement as lines, its last brackets opened when it is too long for one; the comment where it fits."""
    pad = " " * indent
    if len(pad + text + comment) <= WIDTH:
        return [pad + text + comment]
    if len(pad + text) <= WIDTH:
        return [pad + text]
    if text.startswith("return ") and len(arguments(text)) > 1:
        parts = arguments(text.removeprefix("return "))
        return [f"{pad}return (", *(f"{pad}    {part}," for part in parts), f"{pad})"]
    name, equals, value = text.partition(" = ")
    if equals and _operates(value) and len(f"{pad}    {value}") <= WIDTH:
        return [f"{pad}{name} = (", f"{pad}    {value}", f"{pad})"]
    head, inner, tail = opened(text)
    if not inner:
        return [pad + text]
    one = f"{pad}    {inner}"
    if len(one) <= WIDTH:
        return [pad + head, one, pad + tail]
    return [pad + head, *(f"{pad}    {part}," for part in arguments(inner)), pad + tail]


def _operates(text: str) -> bool:
    """Whether an expression has an operator outside of all brackets."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if depth == 0 and letter in "+-*/@&|<>=" and text[place - 1 : place] == " ":
            return True
    return False


def opened(text: str) -> tuple[str, str, str]:
    """A statement cut at the last pair of brackets that is not inside of another one."""
    depth, start, found = 0, 0, ("", "", "")
    for place, letter in enumerate(text):
        if letter in "([{":
            if depth == 0:
                start = place
            depth += 1
        elif letter in ")]}":
            depth -= 1
            if depth == 0 and place > start + 1:
                found = (text[: start + 1], text[start + 1 : place], text[place:])
    return found


def arguments(text: str) -> list[str]:
    """The parts between the commas that are in no brackets."""
    parts, depth, last = [], 0, 0
    for place, letter in enumerate(text):
        if letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            parts.append(text[last:place].strip())
            last = place + 1
    return [part for part in (*parts, text[last:].strip()) if part]


def quoted(text: str) -> str:
    """A string as Python reads it, whatever is in it."""
    return json.dumps(text)


def signature(name: str, parameters: list[str], result: str, indent: int = 4) -> list[str]:
    """The head of a function."""
    pad = " " * indent
    one = f"{pad}def {name}({', '.join(parameters)}) -> {result}:"
    if len(one) <= WIDTH:
        return [one]
    inner = f"{pad}    {', '.join(parameters)}"
    if len(inner) <= WIDTH:
        return [f"{pad}def {name}(", inner, f"{pad}) -> {result}:"]
    return [f"{pad}def {name}(", *(f"{pad}    {each}," for each in parameters), f"{pad}) -> {result}:"]
