"""How a blocking class becomes an awaited one: from its public names, and a few words on what is special.

A public method becomes a coroutine of the same signature, whose work is done in a thread. What it takes and returns
says the rest, so that a new method of the blocking class needs no line here:

  progress                 called in the event loop's thread; it is also how the work is stopped
  source, target, dst      may be async, see sources.py
  progress or durability   a long call: it takes one of the store's long slots, as LONG do; others take a short one
  -> Layer, TarStream ...  the awaited one; if the call is cancelled in its last moment, the reference is taken back
  -> Iterator[X]           an async iterator
  a context manager        an async context manager

A property, or an annotated attribute, passes through. A class may define a name itself.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import itertools
import re
import sys
import types
from collections.abc import AsyncIterator, Callable, Collection
from typing import Any, Generic, Self, TypeVar

from layerstore.aio.calls import Call, Slots, in_thread
from layerstore.aio.sources import is_async_target, source_for, target_for

BATCH = 512
B = TypeVar("B")
C = TypeVar("C", bound="type[Mirror[Any]]")

AWAITED: dict[type, type[Mirror[Any]]] = {}
"""The awaited class of each blocking one."""
NAMES: dict[str, Any] = {"AsyncIterator": AsyncIterator}
"""What the names in the annotations of awaited methods mean."""

LONG = frozenset({"cleanup", "orphans", "reclaim", "sync"})
ENDS = frozenset({
    "close", "discard", "leave", "release", "release_rw_layer", "release_unused", "remove", "take_back", "unmount",
})  # fmt: skip
"""Methods that release something: they take no slot and always run to their end."""
OTHERS = frozenset({"run"})
"""Methods that take as long as a program of the caller's: they take no slot either, and end when they are cancelled."""
UNDO: dict[str, Callable[[Any, Any], object]] = {
    "mount": lambda layer, _: layer.unmount(), "snapshot": lambda _, snapshot: snapshot.release(),
    "get_snapshot": lambda *_: None, "unpack_ahead": lambda store, unpacked: store.discard(unpacked),
}  # fmt: skip
"""What undoes a method that is cancelled in its last moment, where its result is no reference."""
TARGETS = frozenset({"target", "dst"})
WORDS = {"from the calling thread": "in the event loop's thread", "a `with` block": "an `async with` block"}
NOTES = {
    frozenset({"source"}): """A source may also be an async iterator of bytes, an asyncio.StreamReader or whatever has
a coroutine read(n), or a File or TarStream of this module. A blocking read() that has begun is waited for.""",
    TARGETS: """The target may also be an asyncio.StreamWriter, or whatever has a coroutine write(): each block waits
until it is taken.""",
}


class Mirror(Generic[B]):
    """An object whose calls are awaited; `blocking` is the same object for blocking calls."""

    def __init__(self, blocking: B, slots: Slots) -> None:
        """Take over a blocking object."""
        self._blocking, self._slots = blocking, slots

    def __repr__(self) -> str:
        return f"<aio.{type(self).__name__} {repr(self._blocking).strip('<>').partition(' ')[2]}".rstrip() + ">"

    @property
    def blocking(self) -> B:
        """The same object for blocking calls."""
        return self._blocking


class Managed(Mirror[B]):
    """A Mirror that `async with` releases or closes at its end, as `with` does the blocking object."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        manager: Any = self.blocking
        await in_thread(lambda _: manager.__exit__(*error), None)


def public(blocking: type) -> dict[str, Any]:
    """Return the public names of a class of ours, and what they are; of an annotated attribute, its annotation."""
    found: dict[str, Any] = {}
    for kind in reversed(blocking.__mro__):
        if kind.__module__.startswith("layerstore"):
            found |= {**vars(kind), **inspect.get_annotations(kind)}
    return {name: thing for name, thing in found.items() if not name.startswith("_")}


def mirrors(blocking: type, *, left: Collection[str] = ()) -> Callable[[C], C]:
    """Decorate an awaited class: add a counterpart of each public name of a blocking class that it does not define.

    left   the names without a counterpart
    """

    def decorate(cls: C) -> C:
        AWAITED[blocking] = cls
        NAMES.update(vars(sys.modules[blocking.__module__]))
        for name, thing in public(blocking).items():
            if not hasattr(cls, name) and name not in left:
                setattr(cls, name, _counterpart(f"{cls.__name__}.{name}", name, thing))
        return cls

    return decorate


def awaits(function: Callable[..., Any]) -> Any:
    """Return the coroutine function for a blocking function of a module."""
    NAMES.update(vars(sys.modules[function.__module__]))
    return _coroutine(_Work(function), function.__name__)


def awaited(value: Any, slots: Slots) -> Any:
    """Return the awaited object for a blocking one, or those of a list or a dict of them; other values as they are."""
    if isinstance(value, dict) and _kind_of(next(iter(value.values()), None)):
        return {key: awaited(each, slots) for key, each in value.items()}
    if type(value) is list and value and _kind_of(value[0]):
        return [awaited(each, slots) for each in value]
    kind = _kind_of(value)
    return kind(value, slots) if kind else value


def _kind_of(value: object) -> type[Mirror[Any]] | None:
    return next((AWAITED[kind] for kind in type(value).__mro__ if kind in AWAITED), None)


def _blocking(value: Any) -> Any:
    """Return the blocking object for an awaited one, or a list for several; other values as they are."""
    if isinstance(value, (list, tuple, set, frozenset)) and any(isinstance(each, Mirror) for each in value):
        return [_blocking(each) for each in value]
    return value.blocking if isinstance(value, Mirror) else value


class _Work:
    """One blocking function or method, as work for a thread."""

    def __init__(self, function: Any, method: str = "") -> None:
        """method   its name, if its first argument is the awaited object whose blocking one has it"""
        self.function, self.method, self.signature = function, method, inspect.signature(function)
        self.takes = set(self.signature.parameters)

    def slots(self, args: tuple[Any, ...]) -> Slots:
        """Return the slots that its results share."""
        return args[0]._slots if self.method else Slots()

    async def do(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do it with arguments from the loop; return what the blocking call returned."""
        bound = self.signature.bind(*args, **kwargs)
        given = bound.arguments
        for name, value in given.items():
            kind = _kind_of(value)
            if kind and str(self.signature.parameters[name].annotation).removesuffix(" | None") == kind.__name__:
                where = f"{self.function.__name__}() takes a {kind.__name__} of layerstore.aio"
                raise TypeError(f"{where}, not the blocking {value!r}")
        slots = self.slots(args)
        long = self.takes & {"progress", "durability"} or self.method in LONG
        feeds = any(is_async_target(given.get(name)) for name in TARGETS)       # maybe a call that has a slot
        slot = None if feeds or self.method in ENDS | OTHERS else slots.long if long else slots.short

        def work(call: Call) -> Any:
            for name, value in given.items():
                given[name] = value = _blocking(value)
                if name == "source":
                    given[name] = source_for(call, value)
                elif name in TARGETS:
                    given[name] = target_for(call, value)
            if "progress" in self.takes:
                given["progress"] = call.hook(given.get("progress"))
            function = getattr(type(bound.args[0]), self.method) if self.method else self.function
            return function(*bound.args, **bound.kwargs)

        def take_back(result: Any) -> None:
            if self.method in UNDO:
                UNDO[self.method](args[0].blocking, result)
            elif isinstance(result, io.IOBase):
                result.close()
            elif slots.take_back and _kind_of(result):
                slots.take_back(result)

        return await in_thread(work, slot, take_back)

    async def result(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Do it; return what it returned, awaited."""
        return awaited(await self.do(args, kwargs), self.slots(args))

    async def each(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        """Do it; iterate over what it returned, some at a time."""
        entries, slots = iter(await self.do(args, kwargs)), self.slots(args)
        while some := await in_thread(lambda _: list(itertools.islice(entries, BATCH)), slots.short):
            for entry in some:
                yield awaited(entry, slots)

    @contextlib.asynccontextmanager
    async def within(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AsyncIterator[Any]:
        """Do it; enter the context manager that it returned, and leave it at the end."""
        manager = await self.do(args, kwargs)

        async def leave(*error: object) -> Any:
            return await in_thread(lambda _: manager.__exit__(*error), None)

        entered = await in_thread(
            lambda _: manager.__enter__(), self.slots(args).short, lambda _: manager.__exit__(None, None, None)
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_exit(leave)
            yield awaited(entered, self.slots(args))


def _counterpart(where: str, name: str, thing: Any) -> Any:
    """Make the counterpart of one public name of a class."""
    if isinstance(thing, staticmethod):
        return staticmethod(_coroutine(_Work(thing.__func__), where))
    if inspect.isfunction(thing):
        return _coroutine(_Work(thing, name), where)
    convert = awaited

    def read(self: Any) -> Any:
        return convert(getattr(self.blocking, name), self._slots)

    kind = thing.fget.__annotations__["return"] if isinstance(thing, property) else thing
    doc = thing.__doc__ if isinstance(thing, property) else "As the blocking object has it."
    return property(_dressed(read, where, inspect.signature(read).replace(return_annotation=kind), doc))


def _coroutine(work: _Work, where: str) -> Any:
    """Make the awaited function for a piece of work."""
    doc = inspect.cleandoc(work.function.__doc__ or "")
    for blocking, ours in WORDS.items():
        doc = re.sub(r"\s+".join(map(re.escape, blocking.split())), ours, doc)
    for parameters, note in NOTES.items():
        doc += f"\n\n{note}" if work.takes & parameters else ""
    returned = str(work.signature.return_annotation).replace("BinaryIO", "File")
    returns, iterates = re.subn(r"^(Iterator|Iterable)\b", "AsyncIterator", returned)
    signature = work.signature.replace(return_annotation=returns)
    if iterates and hasattr(work.function, "__wrapped__"):

        async def managed(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            async with work.within(args, kwargs) as entered:
                yield entered

        return contextlib.asynccontextmanager(_dressed(managed, where, signature, doc))
    if iterates:

        async def iterated(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
            async for entry in work.each(args, kwargs):
                yield entry

        return _dressed(iterated, where, signature, doc)

    async def done(*args: Any, **kwargs: Any) -> Any:
        return await work.result(args, kwargs)

    return _dressed(done, where, signature, doc)


def _dressed(function: Any, where: str, signature: inspect.Signature, doc: str | None) -> Any:
    """Return the function under another name and signature, whose annotations are looked up in NAMES.

    function   uses only what it closes over
    """
    made: Any = types.FunctionType(function.__code__, NAMES, where.rpartition(".")[2], None, function.__closure__)
    made.__module__, made.__qualname__, made.__doc__, made.__signature__ = "layerstore.aio", where, doc, signature
    annotated = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    annotated["return"] = signature.return_annotation
    made.__annotations__ = {name: kind for name, kind in annotated.items() if kind is not inspect.Signature.empty}
    return made
