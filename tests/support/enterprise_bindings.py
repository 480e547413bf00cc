"""The names that enterprise TensorRT's Python bindings define, without its libraries.

    python tests/support/enterprise_bindings.py WHEEL

prints {"": [names of the module], "IBuilderConfig": [names], …}.

The extension module of the wheel needs libnvinfer and others to load. Here a copy of it is loaded that asks
for none of NVIDIA's libraries and to which their functions may be absent: its classes register as always, and
nothing calls into TensorRT. In a process of its own, since two of these modules in one clash.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import json
import struct
import sys
import tempfile
import zipfile
from pathlib import Path
from types import ModuleType

_SECTION_DYNAMIC, _SECTION_DYNAMIC_SYMBOLS = 6, 11
_NEEDED, _IGNORED = 1, 21  # d_tag: DT_NEEDED, and DT_DEBUG, which means nothing in a library
_UNDEFINED, _GLOBAL, _WEAK = 0, 1, 2  # st_shndx, and bindings of a symbol


def without_libraries(library: bytes) -> bytes:
    """An ELF library (64 bit, little endian) that needs no ``libnv*`` and none of its undefined names."""
    data = bytearray(library)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, table + i * size) for i in range(count)]
    for _, kind, _, _, offset, length, link, _, _, step in sections:
        if kind not in (_SECTION_DYNAMIC, _SECTION_DYNAMIC_SYMBOLS):
            continue
        names = sections[link][4]
        for entry in range(offset, offset + length, step):
            if kind == _SECTION_DYNAMIC:
                tag, name = struct.unpack_from("<QQ", data, entry)
                if tag == _NEEDED and data.startswith(b"libnv", names + name):
                    struct.pack_into("<Q", data, entry, _IGNORED)
            else:
                _, info, _, section = struct.unpack_from("<IBBH", data, entry)
                if section == _UNDEFINED and info >> 4 == _GLOBAL:
                    data[entry + 4] = _WEAK << 4 | info & 15
    return bytes(data)


def names_of(module: ModuleType) -> dict[str, list[str]]:
    """Names by class; the module's own under the empty name."""
    classes = {name: value for name, value in vars(module).items() if isinstance(value, type)}
    return {"": dir(module), **{name: dir(value) for name, value in classes.items()}}


def names_of_wheel(wheel: Path) -> dict[str, list[str]]:
    """Those of the package in a wheel: its extension module, and what its ``__init__`` assigns."""
    with zipfile.ZipFile(wheel) as files, tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "tensorrt.so"
        library.write_bytes(without_libraries(files.read("tensorrt_bindings/tensorrt.so")))
        loader = importlib.machinery.ExtensionFileLoader("tensorrt", str(library))
        spec = importlib.util.spec_from_loader("tensorrt", loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        names = names_of(module)
        body = ast.parse(files.read("tensorrt_bindings/__init__.py")).body
    assigned = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    names[""] += [target.id for target in assigned if isinstance(target, ast.Name)]
    return names


if __name__ == "__main__":
    print(json.dumps(names_of_wheel(Path(sys.argv[1]))))
