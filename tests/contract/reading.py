"""Which fields of a request the code that answers it reads, found in the source itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from tests.contract.descriptors import ROOT

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(slots=True)
class Module:
    """One file: its functions, its classes with their methods, and where its names come from."""

    path: Path
    functions: dict[str, Function] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    imported: dict[str, tuple[Path, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> Module:
        found = cls(path)
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, Function):
                found.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                found.classes[node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.module:
                place = ROOT.joinpath(*node.module.split("."))
                for name in node.names:
                    known = (place.with_suffix(".py"), name.name)
                    if known[0].is_file() and node.module.split(".")[0] in ("chassis", "services"):
                        found.imported[name.asname or name.name] = known
                    elif (place / f"{name.name}.py").is_file():
                        found.imported[name.asname or name.name] = (place / f"{name.name}.py", "")
        return found

    def method(self, owner: str, name: str) -> Function | None:
        """A method of a class, or of one that it extends in this file."""
        made = self.classes.get(owner)
        if made is None:
            return None
        own = {node.name: node for node in made.body if isinstance(node, Function)}
        for base in made.bases:
            if name not in own and isinstance(base, ast.Name):
                found = self.method(base.id, name)
                if found is not None:
                    return found
        return own.get(name)


class Source:
    """The source of the tree, each file read once."""

    def __init__(self) -> None:
        self._modules: dict[Path, Module] = {}

    def module(self, path: Path) -> Module:
        if path not in self._modules:
            self._modules[path] = Module.of(path)
        return self._modules[path]

    def servicers(self) -> Iterator[tuple[Module, str, str]]:
        """Each class that answers a gRPC service: its file, its name, and the service's."""
        rooms = sorted([*ROOT.glob("services/*/*.py"), *ROOT.glob("chassis/*.py")])
        for path in rooms:
            module = self.module(path)
            for name, made in module.classes.items():
                for base in made.bases:
                    if isinstance(base, ast.Attribute) and base.attr.endswith("Servicer"):
                        yield module, name, base.attr.removesuffix("Servicer")

    def read(self, module: Module, owner: str, function: Function, place: int) -> set[str]:
        """Fields that a function reads of the argument at this place, itself or by whom it asks."""
        return self._read(module, owner, function, place, set())

    def _read(
        self, module: Module, owner: str, function: Function, place: int, seen: set[int]
    ) -> set[str]:
        if id(function) in seen or place >= len(function.args.args):
            return set()
        seen.add(id(function))
        names = {function.args.args[place].arg}
        for node in ast.walk(function):
            names |= _taken(node, names)
        found: set[str] = set()
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and _is(node.value, names):
                found.add(node.attr)
            elif isinstance(node, ast.Call):
                found |= self._asked(module, owner, node, names, seen)
        return found

    def _asked(
        self, module: Module, owner: str, call: ast.Call, names: set[str], seen: set[int]
    ) -> set[str]:
        asked, given = call.func, list(call.args)
        if isinstance(asked, ast.Name) and asked.id == "partial" and given:
            asked, given = given[0], given[1:]
        if isinstance(asked, ast.Name) and asked.id in ("getattr", "setattr") and len(given) > 1:
            constant = given[1]
            named = isinstance(constant, ast.Constant) and _is(given[0], names)
            return {str(constant.value)} if named and isinstance(constant, ast.Constant) else set()
        found: set[str] = set()
        for place, argument in enumerate(given):
            if _is(argument, names):
                for other, cls, function, shift in self._resolve(module, owner, asked):
                    found |= self._read(other, cls, function, place + shift, seen)
        return found

    def _resolve(
        self, module: Module, owner: str, asked: ast.expr
    ) -> Iterator[tuple[Module, str, Function, int]]:
        """Where a call goes: to a method of one's own, a function here, or one that was imported."""
        if isinstance(asked, ast.Attribute) and _is(asked.value, {"self"}):
            function = module.method(owner, asked.attr)
            if function is not None:
                yield module, owner, function, 1
        elif isinstance(asked, ast.Name):
            if asked.id in module.functions:
                yield module, "", module.functions[asked.id], 0
            elif asked.id in module.imported:
                path, name = module.imported[asked.id]
                other = self.module(path)
                if name in other.functions:
                    yield other, "", other.functions[name], 0
        elif isinstance(asked, ast.Attribute) and isinstance(asked.value, ast.Name):
            path, _ = module.imported.get(asked.value.id, (Path(), ""))
            if path.suffix == ".py" and asked.attr in self.module(path).functions:
                yield self.module(path), "", self.module(path).functions[asked.attr], 0


def _taken(node: ast.AST, streams: set[str]) -> set[str]:
    """What a statement takes out of a stream of requests."""
    match node:
        case ast.AsyncFor(target=ast.Name(id=one), iter=source) if _is(source, streams):
            return {one}
        case ast.Assign(
            targets=[ast.Name(id=one)],
            value=ast.Await(value=ast.Call(func=ast.Name(id="anext"), args=[source])),
        ) if _is(source, streams):
            return {one}
        case _:
            return set()


def _is(node: ast.AST, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names
