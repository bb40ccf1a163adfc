"""Passes and pipelines by name: the project's own, those of installed packages, and those of the
user's files."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from irprune import passes
from irprune.base.near import meant
from irprune.driver.passes import (
    Pass,
    fitted,
    has_fitting_default,
    is_pass,
    is_thawed,
    name_of,
    options_of,
    type_name,
    written,
)
from irprune.driver.read import PassCall, read_pipeline
from irprune.errors import IrpruneError, gist, users_line

__all__ = ["ENTRY_POINTS", "Registry", "own", "standard"]

ENTRY_POINTS = "irprune.passes"


@dataclass
class Registry:
    """Pass classes and pipelines by name, and where each came from."""

    passes: dict[str, type] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    pipelines: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def add(self, cls: type, source: str) -> None:
        """Take a pass in. Raises IrpruneError for a name taken twice and for a default that does
        not fit its type."""
        name = name_of(cls)
        for option in options_of(cls).values():
            if not has_fitting_default(option):
                raise IrpruneError(
                    f"{cls.__name__}: the default of {option.name} is {option.default!r}",
                    source,
                    f"its type says {type_name(option.type)}",
                )
        if name in self.passes and self.passes[name] is not cls:
            raise IrpruneError(
                f"two passes are called {name!r}",
                f"{self.sources[name]} and {source}",
                "rename the class of one of them",
            )
        self.passes[name], self.sources[name] = cls, source

    def add_module(self, module: ModuleType, source: str) -> list[str]:
        """Take in the passes that ``module`` defines; returns their names. Raises IrpruneError for
        a class that runs and is no frozen dataclass."""
        defined = [
            x
            for x in vars(module).values()
            if isinstance(x, type) and x.__module__ == module.__name__
        ]
        for cls in defined:
            is_base = any(cls in x.__mro__[1:] for x in defined)
            if is_thawed(cls) and not is_base:
                raise IrpruneError(
                    f"{cls.__name__} is no frozen dataclass",
                    source,
                    "a pass has @dataclass(frozen=True) and run(self, graph) -> PassResult",
                )
        own = [x for x in defined if is_pass(x)]
        for cls in own:
            self.add(cls, source)
        return [name_of(cls) for cls in own]

    def load(self, file: str | Path) -> list[str]:
        """Take in the passes of a Python file; returns their names. Raises IrpruneError where there
        are none."""
        path = Path(file)
        if not path.is_file():
            raise IrpruneError("no such file", str(path), "name a Python file")
        name = f"irprune_loaded_{path.stem}_{len(self.passes)}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise IrpruneError("not a Python file", str(path), "a file of passes ends in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their own module up
        try:
            spec.loader.exec_module(module)
        except Exception as broken:
            del sys.modules[name]
            where = users_line(broken) or str(path)
            raise IrpruneError(
                f"cannot be loaded: {gist(broken)}", where, "it must import on its own"
            ) from broken
        made = self.add_module(module, str(path))
        if not made:
            raise IrpruneError(
                "no pass in this file",
                str(path),
                "a pass has @dataclass(frozen=True) and run(self, graph) -> PassResult",
            )
        return made

    def get(self, name: str) -> type:
        """The class of the pass ``name``; raises IrpruneError with near names where there is
        none."""
        if name not in self.passes:
            known = [*self.passes, *self.pipelines]
            hint = meant(name, known, "`irprune passes` lists them all")
            raise IrpruneError(f"no pass {name!r}", "", hint)
        return self.passes[name]

    def make(self, call: PassCall) -> Pass:
        """The pass that ``call`` names, with its options. Raises IrpruneError for what does not
        fit."""
        cls = self.get(call.name)
        known = options_of(cls)
        given: dict[str, Any] = {}
        for key, value in call.options.items():
            if key not in known:
                has = f"it has {', '.join(known)}" if known else "it has none"
                raise IrpruneError(
                    f"{call.name} has no option {key!r}",
                    "",
                    meant(key, known, has),
                )
            if not known[key].settable:
                raise IrpruneError(
                    f"option {key!r} of {call.name} cannot be given in a pipeline string",
                    "",
                    "make the pass in Python",
                )
            try:
                given[key] = fitted(value, known[key].type)
            except TypeError:
                raise IrpruneError(
                    f"{call.name}: {key} is {written(value)}",
                    "",
                    f"it takes {type_name(known[key].type)}",
                ) from None
        missing = [o for o in known.values() if o.required and o.name not in given]
        if missing:
            settable = all(o.settable for o in missing)
            hint = (
                f"write {call.name}{{{missing[0].name}=...}}"
                if settable
                else "it is made in Python, with the objects it works on"
            )
            raise IrpruneError(f"{call.name} needs the option {missing[0].name!r}", "", hint)
        try:
            return cls(**given)  # type: ignore[no-any-return]
        except (TypeError, ValueError) as refused:
            raise IrpruneError(f"{call.name}: {refused}", "", "") from refused

    def parse(self, text: str) -> list[Pass]:
        """The passes of a pipeline string. A pipeline's own name stands for its passes. Raises
        IrpruneError for what is no pipeline."""
        return list(self._expanded(read_pipeline(text)))

    def _expanded(self, calls: Iterable[PassCall]) -> Iterator[Pass]:
        for call in calls:
            if call.name in self.pipelines and call.name not in self.passes:
                names = ",".join(self.pipelines[call.name])
                if call.options:
                    raise IrpruneError(
                        f"the pipeline {call.name!r} takes no options", "", f"write out {names}"
                    )
                yield from self._expanded(read_pipeline(names))
            else:
                yield self.make(call)


def own(names: Iterable[str]) -> list[Pass]:
    """The project's own passes of those names, with their default options; nothing else is
    imported."""
    made: list[Pass] = []
    for name in names:
        module = importlib.import_module(f"irprune.passes.{name.replace('-', '_')}")
        made.append(
            next(cls for cls in vars(module).values() if is_pass(cls) and name_of(cls) == name)()
        )
    return made


def standard(load: Iterable[str | Path] = ()) -> Registry:
    """What ``irprune.passes`` holds, what installed packages offer as entry points, and the passes
    of the files ``load``."""
    registry = Registry()
    for info in sorted(pkgutil.iter_modules(passes.__path__), key=lambda m: m.name):
        registry.add_module(importlib.import_module(f"{passes.__name__}.{info.name}"), "irprune")
    registry.pipelines = {
        name.lower(): value
        for name, value in vars(passes).items()
        if name.isupper() and isinstance(value, tuple)
    }
    for point in sorted(entry_points(group=ENTRY_POINTS), key=lambda p: p.name):
        try:
            thing = point.load()
        except Exception as broken:
            raise IrpruneError(
                f"{point.value!r} cannot be loaded: {broken}",
                point.name,
                "update or uninstall that package",
            ) from broken
        if isinstance(thing, ModuleType):
            registry.add_module(thing, point.value)
        elif is_pass(thing):
            registry.add(thing, point.value)
        else:
            raise IrpruneError(
                f"the entry point {point.value!r} is no pass",
                point.name,
                "it names a pass or a module of passes",
            )
    for file in load:
        registry.load(file)
    return registry
