"""What a model, a loss or a step computes: the digest of its code, and of the plain values that the code reads.

A function is its byte code with its constants and names, its defaults and its closure; a class, its functions and plain
values; a model, its tree of modules with their classes and attributes. What the code names is followed. Names of files, lines,
docstrings and local variables do not count, so that a comment, or a file that has moved, is not another program. Byte code is
that of one version of Python: digests of two versions cannot be compared.

The code of installed libraries, of Python and of Mirabelle is not read: it counts by its name, and the versions are recorded
for each process of a run. A package that was installed from a local folder may change without its version, so its code is read.
"""

from __future__ import annotations

import dis
import enum
import functools
import site
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from mirabelle.numerics.arrays import bytes_of
from mirabelle.run.code import Code
from mirabelle.run.files import digest, digest_of_data

_OF_MODULES = frozenset(vars(nn.Module()))  # attributes that torch itself gives to every module
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_PLAIN = (types.NoneType, bool, int, float, complex, str, bytes, types.EllipsisType)
_OF_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_OF_LAYERS = ("name", "built", "_called")  # attributes of Keras' layers that compute nothing
_ORIGINS = ("name_or_path", "_name_or_path", "_commit_hash", "transformers_version")  # where a transformers model came from
_OF_CLASSES = ("__doc__", "__firstlineno__")  # names that the body of a class sets, and that compute nothing
_LIBRARIES = ("site-packages", "dist-packages")  # folders of installed packages


def program_digest(module: nn.Module) -> str:
    """A digest of what a module computes, apart from the tensors in its state: 16 hexadecimal digits.

    It is the same in every process with the same version of Python.

    Args:
        module: the model; it is neither run nor changed.

    Example:
        >>> program_digest(nn.Sequential(nn.ReLU())) == program_digest(nn.Sequential(nn.ReLU()))
        True
        >>> program_digest(nn.LeakyReLU(0.1)) == program_digest(nn.LeakyReLU(0.2))
        False
    """
    return program_of({"the model": module}).digest


def program_of(objects: Mapping[str, Any]) -> Code:
    """The program that objects make up together.

    Args:
        objects: models, functions and other objects, by what they are, such as "the teacher".
    """
    reader = _Reader()
    for name, value in objects.items():
        if isinstance(value, nn.Module):
            reader.add_model(name, value)
        else:
            reader.text_of(value)
    parts = {name: digest(*(text.encode() for text in sorted(texts))) for name, texts in sorted(reader.parts.items())}
    python = f"{sys.implementation.cache_tag}{f' -O{sys.flags.optimize}' if sys.flags.optimize else ''}"
    return Code(python, digest_of_data(parts), parts)


class _Reader:
    """Reads objects, and follows what their code names.

    Attributes:
        parts: name of a part -> texts that stand for what it is; two classes of one name are one part.
    """

    def __init__(self) -> None:
        self.parts: dict[str, set[str]] = {}
        self._texts: dict[int, str] = {}
        self._alive: list[Any] = []  # what was read, so that no id is used twice

    def add_model(self, name: str, model: nn.Module) -> None:
        """Read a tree of modules: their classes, attributes and hooks."""
        attributes: dict[str, list[str]] = {}
        tree = []
        for place, module in model.named_modules(remove_duplicate=False):
            kind = self.text_of(type(module))
            tree.append(f"{place} {kind} {self._generated(module)}")
            for key, value in self._values_of(module):
                attributes.setdefault(f"{key} of {type(module).__qualname__} in {name}", []).append(
                    f"{place} {self.text_of(value)}"
                )
        self._put(f"the modules of {name}", "\n".join(tree))
        for key, texts in attributes.items():
            self._put(f"attribute {key}", "\n".join(texts))

    def _generated(self, module: nn.Module) -> str:
        """The code of a module that was traced, scripted or built as a graph; "" for one that was written by hand."""
        if isinstance(module, fx.GraphModule):
            return str(module.code)
        if isinstance(module, torch.jit.ScriptModule):
            code, constants = module.code_with_constants
            return f"{code} {self.text_of(constants.const_mapping)}"
        return ""

    def _values_of(self, module: nn.Module) -> Iterator[tuple[str, Any]]:
        """The values that a module computes with, apart from its modules and the tensors in its state."""
        for key, value in sorted(vars(module).items()):
            if key not in (*_OF_MODULES, *_ORIGINS) and not (
                isinstance(value, Tensor) and not value.is_leaf
            ):  # left by a forward pass
                yield key, value
        for key in module._non_persistent_buffers_set:
            yield key, module._buffers.get(key)
        for key in _HOOKS:
            if hooks := list(vars(module).get(key, {}).values()):
                yield key, hooks

    def text_of(self, value: Any) -> str:
        """A text that stands for a value: equal for equal values, in every process."""
        if isinstance(value, enum.Enum):
            return f"{type(value).__qualname__}.{value.name}"
        if type(value) in _PLAIN or isinstance(value, _OF_TORCH):
            return f"{type(value).__name__} {value!r}"
        if id(value) not in self._texts:
            self._alive.append(value)
            self._texts[id(value)] = f"{_name(value)} in itself"  # until it is read
            self._texts[id(value)] = self._read(value)
        return self._texts[id(value)]

    def _read(self, value: Any) -> str:
        if any(kind.__module__.startswith("keras.") for kind in type(value).__mro__):  # layers are modules of torch, too
            return self._of_library(value)
        for kinds, read in self._kinds():
            if isinstance(value, kinds):
                return read(value)
        return self._object(value)

    def _kinds(self) -> Iterator[tuple[Any, Callable[[Any], str]]]:
        yield types.FunctionType, self._function
        yield types.MethodType, lambda one: f"{self.text_of(one.__func__)} of {self.text_of(one.__self__)}"
        yield (types.BuiltinFunctionType, types.ModuleType, torch.jit.ScriptFunction), _name
        yield type, self._class
        yield functools.partial, self._partial
        yield (staticmethod, classmethod), lambda one: f"{type(one).__name__} {self.text_of(one.__func__)}"
        yield property, lambda one: f"property {self.text_of([one.fget, one.fset])}"
        yield functools.cached_property, lambda one: f"property {self.text_of(one.func)}"
        yield nn.Module, self._module
        yield Tensor, lambda one: f"{one.dtype} {tuple(one.shape)} {digest(bytes_of(one))}"
        yield np.ndarray, self._array
        yield Mapping, lambda one: _joined("dict", sorted(f"{self.text_of(k)}: {self.text_of(v)}" for k, v in one.items()))
        yield AbstractSet, lambda one: _joined("set", sorted(map(self.text_of, one)))
        yield (tuple, list), lambda one: _joined("list", map(self.text_of, one))

    def _put(self, name: str, text: str) -> None:
        self.parts.setdefault(name, set()).add(text)

    def _function(self, function: types.FunctionType) -> str:
        name = self._texts[id(function)] = _name(function)  # it may name itself
        if not _own_code(function.__module__):
            self._follow(_cells(function))  # what a library's function holds may be the user's
            return name
        contents = self._contents(function)
        self._put(f"function {function.__qualname__}", contents)
        return f"{name} {digest(contents.encode())}" if "<" in name else name  # there may be several lambdas of one name

    def _partial(self, partial: functools.partial[Any]) -> str:
        text = f"partial {self.text_of([partial.func, partial.args, partial.keywords])}"
        self._put(f"arguments of {_name(partial.func)}", text)
        return text

    def _contents(self, function: types.FunctionType) -> str:
        """The code of a function, with its defaults, its closure and the names of what it uses."""
        given = [function.__defaults__, function.__kwdefaults__, _cells(function)]
        return f"{text_of_code(function.__code__)} {self.text_of(given)} {self._named_by(function)}"

    def _named_by(self, function: types.FunctionType) -> str:
        """What the code of a function names outside of itself."""
        found = [self._named(function, chain) for chain in _chains(function.__code__)]
        return _joined("names", sorted({text for text in found if text}))

    def _named(self, function: types.FunctionType, chain: tuple[str, ...]) -> str:
        if chain[0] not in function.__globals__:
            return ""  # built-in, or not defined yet
        value, name = function.__globals__[chain[0]], chain[0]
        for attribute in chain[1:]:
            inside = vars(value).get(attribute, _MISSING) if _may_be_entered(value) else _MISSING
            if inside is _MISSING:
                break
            value, name = inside, f"{name}.{attribute}"
        return f"{name} = {self.text_of(value)}"

    def _class(self, cls: type) -> str:
        name = self._texts[id(cls)] = _name(cls)  # its methods may name it
        if _own_code(cls.__module__):
            bases = [self.text_of(base) for base in cls.__bases__]
            members = [f"{key} {text}" for key, value in sorted(vars(cls).items()) if (text := self._member(key, value))]
            self._put(f"class {cls.__qualname__}", "\n".join([*bases, *members]))
            if "<" in name:
                name += f" {digest(*(member.encode() for member in members))}"
        return name

    def _member(self, key: str, value: Any) -> str:
        """The text of an attribute of a class; "" for what computes nothing."""
        inner = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if isinstance(inner, types.FunctionType) and _own_code(inner.__module__):
            return f"{type(value).__name__} {self._contents(inner)}"
        if isinstance(inner, types.FunctionType):
            return self.text_of(inner)
        if isinstance(value, property):
            return " ".join(self._member(key, one) for one in (value.fget, value.fset) if one is not None)
        if key.startswith(("__", "_abc_")) or type(value).__name__ in ("member_descriptor", "getset_descriptor"):
            return ""
        return self.text_of(value)

    def _module(self, module: nn.Module) -> str:
        """A module that an attribute holds outside of the tree."""
        tree = module.named_modules()
        parts = [f"{place} {self.text_of(type(one))} {self.text_of(dict(self._values_of(one)))}" for place, one in tree]
        return self._with_values_of(module, _joined("module", parts))

    def _with_values_of(self, value: Any, text: str) -> str:
        """The text, which also is that of a part."""
        self._put(f"values of {type(value).__qualname__}", text)
        return text

    def _array(self, array: np.ndarray[Any, Any]) -> str:
        values = self.text_of(array.tolist()) if array.dtype.hasobject else digest(np.ascontiguousarray(array).tobytes())
        return f"{array.dtype} {array.shape} {values}"

    def _object(self, value: Any) -> str:
        kind = self.text_of(type(value))
        if callable(wrapped := getattr(value, "__wrapped__", None)):
            return f"{kind} of {self.text_of(wrapped)}"
        if isinstance(value, fx.Graph):
            return f"{kind} {value}"
        if getattr(type(value), "__module__", "").startswith("transformers."):
            return self._of_library(value)
        if is_dataclass(value):
            return f"{kind} {self.text_of({one.name: getattr(value, one.name, None) for one in fields(value)})}"
        own = _own_code(type(value).__module__) or isinstance(value, types.SimpleNamespace)
        if own or type(value).__module__.startswith("mirabelle."):
            text = f"{kind} {self.text_of(_held_by(value))}"
            return self._with_values_of(value, text) if own else text
        return kind

    def _of_library(self, value: Any) -> str:
        """An object of Keras or transformers by class and configuration; of a class of the user's, plain attributes count."""
        kind = type(value)
        own = {key: one for key, one in getattr(value, "__dict__", {}).items() if type(one) in _PLAIN and key not in _OF_LAYERS}
        return f"{self.text_of(kind)} {self.text_of([self._config_of(value), own if _own_code(kind.__module__) else {}])}"

    def _config_of(self, value: Any) -> Any:
        """What an object of Keras or transformers says of itself, without where it came from."""
        for layer in getattr(value, "_flatten_layers", list)():
            self.text_of(type(layer))
            self._follow([one for one in vars(layer).values() if isinstance(one, types.FunctionType)])
        for method in ("get_config", "to_dict"):
            try:
                said = getattr(value, method)()
            except Exception:  # noqa: BLE001, S112 (code of others, which may not be made for this)
                continue
            if isinstance(said, Mapping):
                return _without_origin({key: one for key, one in said.items() if key != "name"})
        return None

    def _follow(self, values: list[Any]) -> None:
        for value in values:
            self.text_of(value)


_MISSING = object()


def text_of_code(code: types.CodeType) -> str:
    """The instructions of byte code with their constants and names; that of nested functions included."""
    lines = [str(code.co_flags), *code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], code.co_exceptiontable.hex()]
    instructions = list(dis.get_instructions(code))
    for position, one in enumerate(instructions):
        following = instructions[position + 1] if position + 1 < len(instructions) else None
        if following is not None and following.opname == "STORE_NAME" and following.argval in _OF_CLASSES:
            continue
        if one.opname == "STORE_NAME" and one.argval in _OF_CLASSES:
            continue
        if one.opcode in dis.hasconst:
            lines.append(f"{one.opname} {_text_of_constant(one.argval)}")
        elif one.opcode in dis.hasname:
            lines.append(f"{one.opname} {one.argrepr}")
        else:
            lines.append(f"{one.opname} {one.arg}")
    return "\n".join(lines)


def _text_of_constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return f"code ({text_of_code(value)})"
    if isinstance(value, (tuple, frozenset)):
        texts = [_text_of_constant(item) for item in value]
        return _joined(type(value).__name__, sorted(texts) if isinstance(value, frozenset) else texts)
    return f"{type(value).__name__} {value!r}"


def _chains(code: types.CodeType) -> set[tuple[str, ...]]:
    """The global names in byte code, each with the attributes that are read of it at once: `a.b.c` is ("a", "b", "c")."""
    found: set[tuple[str, ...]] = set()
    chain: tuple[str, ...] = ()
    for one in dis.get_instructions(code):
        if one.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
            chain = (*chain, one.argval)
            continue
        if chain:
            found.add(chain)
        chain = (one.argval,) if one.opname in ("LOAD_GLOBAL", "LOAD_NAME") else ()
    if chain:
        found.add(chain)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _chains(constant)
    return found


def _cells(function: types.FunctionType) -> list[Any]:
    """The values in the closure of a function; an empty cell is left out, and so is the class that `super()` needs."""
    values = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            values += [cell.cell_contents] if name != "__class__" else []
        except ValueError:
            continue
    return values


def _may_be_entered(value: Any) -> bool:
    """Whether an attribute of a named value stands for itself: of the user's own modules, and of plain objects."""
    if isinstance(value, types.ModuleType):
        return _own_code(value.__name__)
    return not isinstance(value, (type, types.FunctionType, nn.Module)) and hasattr(value, "__dict__")


def _held_by(value: Any) -> dict[str, Any]:
    """The attributes of an object, those in slots included."""
    slots = [vars(kind).get("__slots__", ()) for kind in type(value).__mro__]
    names = [name for given in slots for name in ([given] if isinstance(given, str) else given)]
    return {**{name: getattr(value, name, None) for name in names}, **getattr(value, "__dict__", {})}


def _without_origin(said: Any) -> Any:
    """A configuration without the places it came from, and without the code of lambdas, which has names of files."""
    if isinstance(said, Mapping):
        if said.get("class_name") == "__lambda__":
            return "lambda"
        return {key: _without_origin(value) for key, value in said.items() if key not in _ORIGINS}
    return [_without_origin(value) for value in said] if isinstance(said, (list, tuple)) else said


def _name(value: Any) -> str:
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or type(value).__qualname__
    module = getattr(value, "__module__", None) or ""
    return f"{type(value).__name__} {name}" if _own_code(module) else f"{type(value).__name__} {module}.{name}"


def _joined(kind: str, texts: Any) -> str:
    return f"{kind}({', '.join(texts)})"


@functools.cache
def _own_code(module: str | None) -> bool:
    """Whether a module is the user's: not Python's, not Mirabelle's, and not of a package that was installed from an index."""
    root = (module or "builtins").partition(".")[0]
    if root == "__main__":
        return True
    if root in sys.stdlib_module_names or root in ("mirabelle", "torch"):
        return False
    found = sys.modules.get(module or "")
    file = getattr(found, "__file__", None)
    if file is None:
        return getattr(found, "__loader__", None) is None  # made in memory, rather than built in
    installed = any(part in _LIBRARIES for part in Path(file).parts)
    return Path(file).suffix in (".py", ".pyc") and (not installed or root in _from_folders())


@functools.cache
def _from_folders() -> frozenset[str]:
    """The top-level packages that were installed from a local folder."""
    found = set()
    for folder in {*site.getsitepackages(), site.getusersitepackages(), *sys.path}:
        for told in Path(folder).glob("*.dist-info/direct_url.json"):
            if '"dir_info"' in told.read_text("utf-8", errors="replace"):
                lines = (Distribution.at(told.parent).read_text("RECORD") or "").splitlines()
                found |= {line.partition(",")[0].partition("/")[0].removesuffix(".py") for line in lines}
    return frozenset(found)
