"""All that can be extended, in one idiom: a `Registry` holds the entries of one kind by name.

An entry comes from one of three places:

    built in           a decorated function in a module of onnxprune
    another package    an entry point in the registry's group names a module, whose decorated functions are entered
    the user           `module:function`, wherever the name of an entry may stand

    SCHEDULES: Registry[Schedule] = Registry("schedule", Plugins("onnxprune.schedules"), of_function=lambda _, f: f)

    @SCHEDULES.register("linear")
    def linear(step, steps, initial, final): ...

    SCHEDULES.find("linear")            # or SCHEDULES.find("my_module:warm")

Modules are imported on the first look into a registry. To import runs a module's code: `module:function` is only taken
from the user's own flags, recipe or Python, never from a model or data file. Its module is looked for as `python -m`
would: the current folder counts as a place.
"""

from __future__ import annotations

import functools
import importlib
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from onnxprune.errors import OnnxPruneError, RecipeError

Entry = TypeVar("Entry")
Function = TypeVar("Function", bound=Callable[..., Any])


_MOST_SHOWN = 60  # characters of what a user's function returned


class Plugins:
    """The modules that fill registries: those of onnxprune, then those that other packages offer.

    Args:
        group: The entry point group in which packages name their modules.
        modules: Modules of onnxprune.
    """

    def __init__(self, group: str, modules: Sequence[str] = ()) -> None:
        self.group = group
        self.modules = tuple(modules)
        self._loaded = False

    def load(self) -> None:
        """Import all modules, once.

        Raises:
            OnnxPruneError: The module of another package cannot be imported; the message names the package.
        """
        if self._loaded:
            return
        self._loaded = True  # before the imports, which may look into the registry themselves
        try:
            for module in self.modules:
                importlib.import_module(module)
            for entry in entry_points(group=self.group):
                _load_entry(entry)
        except BaseException:
            self._loaded = False
            raise


def _load_entry(entry: EntryPoint) -> None:
    try:
        entry.load()
    except Exception as error:
        package = "an installed package" if entry.dist is None else f"the package '{entry.dist.name}'"
        raise OnnxPruneError(
            f"{package} adds '{entry.value}' to {entry.group}, and that cannot be imported "
            f"({type(error).__name__}: {error}): update or uninstall it"
        ) from error


class Registry(Mapping[str, Entry]):
    """Entries of one kind by name.

    Args:
        kind: What an entry is, in the words of a message: "schedule".
        plugins: Where entries come from.
        flag: The flag that takes a name, which messages then begin with: "--schedule".
        of_function: Makes an entry of what the user names as `module:function`, from that text and the function; None
            where only functions with the registry's decorator may be named.
    """

    def __init__(
        self,
        kind: str,
        plugins: Plugins,
        *,
        flag: str = "",
        of_function: Callable[[str, Callable[..., Any]], Entry] | None = None,
    ) -> None:
        self.kind = kind
        self.plugins = plugins
        self._flag = f"{flag}: " if flag else ""
        self._of_function = of_function
        self._entries: dict[str, Entry] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._names: dict[Callable[..., Any], str] = {}

    def add(self, name: str, entry: Entry, function: Callable[..., Any], *, replace: bool = False) -> None:
        """Enter an entry.

        Args:
            name: What the user writes.
            entry: The entry.
            function: What it was made from.
            replace: Whether it completes an entry of this name.

        Raises:
            OnnxPruneError: The name belongs to another function.
        """
        before = self._functions.get(name)
        if before is not None and not replace and _place(before) != _place(function):
            raise OnnxPruneError(
                f"{_place(function)} is to be the {self.kind} '{name}', which is {_place(before)}: choose another name"
            )
        self._entries[name] = entry
        self._functions[name] = function
        self._names[function] = name

    def register(self, *names: str) -> Callable[[Function], Function]:
        """Enter the decorated function, where the functions themselves are the entries."""

        def enter(function: Function) -> Function:
            for name in names:
                self.add(name, function, function)  # type: ignore[arg-type]
            return function

        return enter

    def entered(self, name: str) -> Entry | None:
        """Return what was entered under a name so far, without importing anything: for decorators."""
        return self._entries.get(name)

    def find(self, name: str) -> Entry:
        """Return the entry of a name, or the user's own where it is `module:function`.

        Raises:
            RecipeError: There is none; the message lists the names.
        """
        if name in self:
            return self[name]
        if not is_reference(name):
            names = ", ".join(self)
            raise RecipeError(
                f"{self._flag}there is no {self.kind} {name!r}: choose one of {names}, or module:function"
            )
        function = load_function(name, self.kind)
        if function in self._names:
            return self._entries[self._names[function]]
        if self._of_function is None:
            raise RecipeError(
                f"{self._flag}the function '{name}' is no {self.kind}: it lacks the decorator that makes it one"
            )
        return self._of_function(name, guarded(function, name))

    def __getitem__(self, name: str) -> Entry:
        self.plugins.load()
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self.plugins.load()
        return iter(tuple(self._entries))

    def __len__(self) -> int:
        self.plugins.load()
        return len(self._entries)


def _place(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def summary(function: Callable[..., Any]) -> str:
    """Return the first sentence of a docstring: the formula of a criterion or a method."""
    return " ".join((function.__doc__ or "").split("\n\n")[0].split())


def file_of(name: str) -> Path | None:
    """Return the file that a `module:function` lies in, without importing it; None for other texts."""
    if not is_reference(name):
        return None
    parts = name.partition(":")[0].split(".")
    for folder in (Path.cwd(), *(Path(entry) for entry in sys.path if entry)):
        for file in (folder.joinpath(*parts).with_suffix(".py"), folder.joinpath(*parts, "__init__.py")):
            if file.is_file():
                return file
    return None


def is_reference(name: str) -> bool:
    """True where `name` is written `module:function` (and is not a Windows path such as `C:\\data`)."""
    module, colon, function = name.partition(":")
    return bool(colon) and function.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_function(reference: str, purpose: str) -> Callable[..., Any]:
    """The function that `reference` names.

    Args:
        reference: `package.module:function`.
        purpose: What it is for, in the words of the message: "metric", "loss", ...

    Raises:
        RecipeError: It is no such name, the module cannot be imported, or has no such function.
    """
    if not is_reference(reference):
        raise RecipeError(f"The {purpose} '{reference}' is not a known name, nor of the form module:function.")
    module_name, _, function_name = reference.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise RecipeError(f"The {purpose} '{reference}' cannot be imported: {error}.") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise RecipeError(f"The {purpose} '{reference}' cannot be imported: {failure(error)}.") from error
    finally:
        if here in sys.path:
            sys.path.remove(here)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RecipeError(f"The module '{module_name}' has no function '{function_name}' to use as {purpose}.")
    return function


def guarded(function: Callable[..., Any], reference: str) -> Callable[..., Any]:
    """Return the user's function, with its failures as a sentence that names the function and the line.

    What the function carries (`higher_is_better`) stays. Errors of onnxprune pass as they are.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except (OnnxPruneError, KeyboardInterrupt):
            raise
        except BaseException as error:  # a function may raise whatever it likes
            raise RecipeError(f"'{reference}' failed with {failure(error)}.") from error

    return call


def judged(function: Callable[..., Any], reference: str, fault: Callable[..., str]) -> Callable[..., Any]:
    """Return the user's function, with what it returns judged each time.

    Args:
        function: The function.
        reference: The function's name, for the message.
        fault: From what it returned and its arguments to what is wrong with that ("is no number"); "" where nothing is.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        answer = function(*arguments, **named)
        if what := fault(answer, *arguments):
            raise RecipeError(f"'{reference}' returned {_shown(answer)}, which {what}.")
        return answer

    return call


def no_number(answer: Any, *_: object) -> str:
    """Say that something is no real number, for `judged`; "" where it is one."""
    try:
        return "" if getattr(answer, "ndim", 0) == 0 and math.isfinite(float(answer)) else "is no finite number"
    except (TypeError, ValueError, OverflowError):
        return "is no number"


def _shown(answer: object) -> str:
    shape = getattr(answer, "shape", None)
    if shape is not None:
        return f"numbers of shape {list(shape)}"
    text = " ".join(repr(answer).split())
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]} ..."


def failure(error: BaseException) -> str:
    """Say what went wrong in a user's code, and in which file and line of it: the last line before other packages."""
    said = f": {str(error).splitlines()[0]}" if str(error) else ""
    package_folder = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((package_folder, "<frozen"))
        and Path(frame.filename).parent.name != "importlib"
    ]
    lines = [frame.lineno for frame in frames if frame.filename == frames[0].filename]
    where = f" ({frames[0].filename}, line {lines[-1]})" if frames else ""
    return f"{type(error).__name__}{said}{where}"
