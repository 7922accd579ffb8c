"""A pickle as data: a stack machine that knows the opcodes of plain values, and calls nothing that
a file names.

A pickle is a program. Python's own reader imports what it names and calls it. Here a name stays a
text: it is looked up in the table of *builders* that the caller gives, functions of ours that turn
arguments into inert values, and a name that is not in the table ends the reading. No opcode reaches
an import, an attribute or a constructor.

Besides, the machine is bounded: the number of opcodes and of remembered values, the depth of what
is built; keys are texts, so that no hash of a foreign structure is taken (deep tuples overflow the
C stack there, and crafted integers collide); integers have at most 255 bytes, so that they can be
printed. An opcode that is not known is refused before its argument is decoded (the decoder of old
texts would import a codec); those of the known ones are decoded by ``pickletools``, which finds one
that claims more bytes than there are before anything is allocated.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from fewstep.errors import UserError

OPERATIONS = 2_000_000
MEMO = 1_000_000
LEVELS = 100

Builder = Callable[[tuple[Any, ...]], Any]


@dataclass(frozen=True)
class Name:
    """What a file calls ``module.attribute``; a text, and nothing is behind it."""

    text: str


@dataclass(eq=False)
class ForeignObject:
    """What is left of an object: its class' name, the arguments it was made from, and its state,
    None until the file gives it.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = None


def shown_foreign(value: object) -> str:
    """A foreign value for an error's sentence: short, and in printable ASCII."""
    text = ascii(value) if isinstance(value, str | int | float) else type(value).__name__
    return text if len(text) <= 80 else f"{text[:60]}..."


class Machine:
    """Reads one pickle.

    ``builders``: what a name and its arguments become; ``persistent``: what a persistent id becomes
    (None: there are none).
    """

    def __init__(self, builders: Mapping[str, Builder], persistent: Callable[[Any], Any] | None = None):
        self._builders = builders
        self._persistent = persistent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        """The value that the pickle at the stream's place makes; the stream then stands behind it.

        Raises ``UserError`` without the file's name.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            for count, (name, argument) in enumerate(_opcodes(stream)):
                if count >= OPERATIONS:
                    raise UserError(
                        f"has more than {OPERATIONS} operations, which no network needs; get the file from "
                        "its source again."
                    )
                _HANDLERS[name](self, argument)
        except ValueError as error:
            raise UserError(f"is no whole pickle ({shown_foreign(str(error))}); it may have been cut short.") from error
        if len(self._stack) != 1 or self._marks:
            raise UserError(
                f"is a malformed pickle: it leaves {len(self._stack)} values and {len(self._marks)} open "
                "marks where one value belongs."
            )
        _check_levels(self._stack[0])
        return self._stack[0]

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise UserError("is a malformed pickle: it takes a value that was never made.")
        return self._stack.pop()

    def _pop_as(self, kind: type[Any], meaning: str) -> Any:
        value = self._pop()
        # Exactly the type: a bool is an int to isinstance.
        if type(value) is not kind:
            raise UserError(f"is a malformed pickle: {meaning} is a {type(value).__name__}.")
        return value

    def _pop_marked(self) -> list[Any]:
        if not self._marks:
            raise UserError("is a malformed pickle: it closes a mark that was never set.")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _nothing(self, _: Any) -> None:
        """PROTO, FRAME and STOP say nothing about the value."""

    def _constant(self, argument: Any) -> None:
        self._stack.append(argument)

    def _tuple_of(self, length: int) -> None:
        self._stack.append(tuple(reversed([self._pop() for _ in range(length)])))

    def _append(self, items: list[Any]) -> None:
        target = self._pop_as(list, "what it appends to")
        target.extend(items)
        self._stack.append(target)

    def _set_items(self, items: list[Any]) -> None:
        target = self._pop_as(dict, "what it sets items of")
        if len(items) % 2:
            raise UserError("is a malformed pickle: a dictionary has a key without a value.")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                raise UserError(
                    f"has a dictionary with a key that is a {type(key).__name__}; in networks they are texts."
                )
            target[key] = value
        self._stack.append(target)

    def _add_items(self, items: list[Any]) -> None:
        target = self._pop_as(set, "what it adds items to")
        target.update(texts(items))
        self._stack.append(target)

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise UserError(f"is a malformed pickle: it recalls value {index}, which was never stored.")
        self._stack.append(self._memo[index])

    def _put(self, index: int) -> None:
        if len(self._memo) >= MEMO:
            raise UserError(
                f"stores more than {MEMO} values, which no network needs; get the file from its source again."
            )
        value = self._pop()
        self._stack.append(value)
        self._memo[index] = value

    def _name(self, module: Any, attribute: Any) -> None:
        if type(module) is not str or type(attribute) is not str:
            raise UserError("is a malformed pickle: a name is not a text.")
        text = f"{module}.{attribute}"
        if text not in self._builders:
            raise UserError(
                f"names {shown_foreign(text)}, which no network needs; nothing of it was run; get the file from its "
                "source again."
            )
        self._stack.append(Name(text))

    def _global(self, argument: tuple[str, str]) -> None:
        self._name(*argument)

    def _stack_global(self, _: Any) -> None:
        attribute = self._pop()
        self._name(self._pop(), attribute)

    def _call(self, _: Any) -> None:
        arguments = self._pop_as(tuple, "a call's arguments")
        name = self._pop_as(Name, "what it calls")
        self._stack.append(self._builders[name.text](arguments))

    def _build(self, _: Any) -> None:
        state = self._pop()
        target = self._pop()
        if not isinstance(target, ForeignObject):
            is_name = isinstance(target, Name)
            what = f"the name {shown_foreign(target.text)}" if is_name else f"a {type(target).__name__}"
            raise UserError(f"sets the state of {what}, which has none.")
        if target.state is not None:
            raise UserError(f"sets the state of a {shown_foreign(target.name)} twice.")
        target.state = state
        self._stack.append(target)

    def _persistent_id(self, _: Any) -> None:
        if self._persistent is None:
            raise UserError(
                "has a persistent id, which this kind of file does not; get the file from its source again."
            )
        self._stack.append(self._persistent(self._pop()))


def _opcodes(stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """(name, argument) of each opcode up to the end of the pickle.

    An opcode without a handler is refused before its argument is decoded.

    Raises ``UserError`` for such an opcode, and ``ValueError`` where the stream ends early.
    """
    name = ""
    while name != "STOP":
        code = stream.read(1)
        if not code:
            raise ValueError("it ends before its last opcode")
        opcode = _DECODED.get(code)
        name = opcode.name if opcode is not None else ""
        if name not in _HANDLERS or opcode is None:
            raise UserError(
                f"uses the opcode {name or code.hex()}, which no network needs; get the file from its source again."
            )
        if name == "GLOBAL":
            yield name, (_line(stream), _line(stream))
        else:
            yield name, None if opcode.arg is None else opcode.arg.reader(stream)


def _line(stream: BinaryIO) -> str:
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise ValueError("it ends inside of a name")
    return line[:-1].decode()


def texts(items: list[Any]) -> set[str]:
    """A set of these texts; anything else is refused."""
    for item in items:
        if type(item) is not str:
            raise UserError(f"has a set with a {type(item).__name__} in it; in networks they hold texts.")
    return set(items)


def _check_levels(value: Any) -> None:
    """Refuses what is nested deeper than ``LEVELS``; every value is visited once, level by level,
    without recursion.
    """
    seen: dict[int, Any] = {}
    level = [value]
    for _ in range(LEVELS):
        below: list[Any] = []
        for item in level:
            if isinstance(item, list | tuple | dict | ForeignObject) and id(item) not in seen:
                seen[id(item)] = item
                below.extend(
                    item.values()
                    if isinstance(item, dict)
                    else (item.state, *item.arguments)
                    if isinstance(item, ForeignObject)
                    else item
                )
        if not below:
            return
        level = below
    raise UserError(f"is nested deeper than {LEVELS} levels, which no network is; get the file from its source again.")


_DECODED = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
_HANDLERS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), Machine._nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), Machine._constant),
    **dict.fromkeys(
        ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"), Machine._constant
    ),
    "NONE": lambda machine, _: machine._constant(None),
    "NEWTRUE": lambda machine, _: machine._constant(True),
    "NEWFALSE": lambda machine, _: machine._constant(False),
    "EMPTY_LIST": lambda machine, _: machine._constant([]),
    "EMPTY_DICT": lambda machine, _: machine._constant({}),
    "EMPTY_SET": lambda machine, _: machine._constant(set()),
    "EMPTY_TUPLE": lambda machine, _: machine._constant(()),
    "TUPLE1": lambda machine, _: machine._tuple_of(1),
    "TUPLE2": lambda machine, _: machine._tuple_of(2),
    "TUPLE3": lambda machine, _: machine._tuple_of(3),
    "TUPLE": lambda machine, _: machine._constant(tuple(machine._pop_marked())),
    "MARK": Machine._mark,
    "APPEND": lambda machine, _: machine._append([machine._pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_marked()),
    "SETITEM": lambda machine, _: machine._set_items([*reversed([machine._pop(), machine._pop()])]),
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_marked()),
    "ADDITEMS": lambda machine, _: machine._add_items(machine._pop_marked()),
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": lambda machine, _: machine._put(len(machine._memo)),
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": Machine._call,
    "NEWOBJ": Machine._call,
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
}
