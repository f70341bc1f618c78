"""Classes and functions that pickles name: which are carried along unread, and which are refused."""

from __future__ import annotations

import re

PARAMETERS = {("torch._utils", "_rebuild_parameter"), ("torch._utils", "_rebuild_parameter_with_state")}
GETATTR = ("builtins", "getattr")  # how protocol 2 spells classes in classes, and methods
NAME = re.compile(r"[A-Za-z_<][\w.<>]*")
RUNS = re.compile(  # modules of what runs programs or code, touches files or changes the process
    r"(os|pip|importlib|ctypes|urllib\.request)(\..*)?|posix|nt|sys|subprocess|shutil|socket|runpy|pty|imp|webbrowser|"
    r"signal|marshal|_?pickle|pydoc|timeit|bdb|pdb|c?[Pp]rofile"  # without modules: profile.models is somebody's own
)
CODE = {"FunctionType", "LambdaType", "CodeType"}  # of types
LET_IN = {("os", "stat_result"), ("signal", "Signals"), ("socket", "AddressFamily"), ("socket", "SocketKind")}
BUILTINS = {  # of which these alone are let in, and exceptions
    *(
        "getattr",
        "object",
        "type",
        "list",
        "dict",
        "tuple",
        "int",
        "float",
        "str",
        "bool",
        "slice",
        "range",
        "len",
        "abs",
    ),
    *("min", "max", "sum", "Ellipsis", "NotImplemented"),
}
OTHER_TENSORS = re.compile(
    r"torch\.(_utils|_tensor|sparse|nested|_subclasses|distributed\.(tensor|_tensor|_shard)|ao\.nn)(\.|$)|torchao(\.|$)"
)
USUAL = re.compile(r"(torch|numpy|collections|argparse|builtins|copyreg|fairseq)(\.|$)")  # not worth a word


def is_refused(module: str, name: str) -> bool:
    """Names that no checkpoint needs, tensors of other kinds than dense ones, and what is no name at all."""
    if (module, name) in PARAMETERS or (module, name) in LET_IN:
        return False
    if module == "builtins":
        return name not in BUILTINS and not name.endswith(("Error", "Exception", "Warning"))
    if (module, name) == ("copyreg", "__newobj_ex__") or not (NAME.fullmatch(module) and NAME.fullmatch(name)):
        return True
    first, *inner = name.split(".")
    if RUNS.fullmatch(module) or any(RUNS.fullmatch(part) for part in (first, *inner[:-1]) if inner):
        return True
    is_code = module == "types" and first in CODE
    return is_code or bool(OTHER_TENSORS.match(module) or (module == "torch" and name.endswith("Storage")))
