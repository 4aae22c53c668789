"""Machine code in this process, from a relocatable object file as LLVM writes it for Numba: every address in it is a whole word.

The format: System V ABI, chapter 4 (object files), and its AMD64 supplement (relocations).
"""

import ctypes
import hashlib
import mmap
import struct
from typing import NamedTuple

SECTION, SYMBOL, RELOCATION = struct.Struct("<IIQQQQIIQQ"), struct.Struct("<IBBHQQ"), struct.Struct("<QQq")
SYMBOLS, RELOCATIONS, NO_BYTES, UNWIND = 2, 4, 8, 0x70000001  # types of sections
LOADED = 2  # flag of a section
UNDEFINED, ABSOLUTE, COMMON = 0, 0xFFF1, 0xFFF2  # instead of a symbol's section
WORD, RELATIVE, RELATIVE_CALL, RELATIVE_WORD = 1, 2, 4, 24  # R_X86_64_64, PC32, PLT32, PC64
FUNCTION = 2  # type of a symbol
PROT_READ_EXEC = 5
# What a kernel would call to raise an exception. Kernels raise none (a test looks), and Numba need not be there.
RAISING = ("Py", "numba_")

_libc = ctypes.CDLL(None, use_errno=True)
_kept: list[mmap.mmap] = []  # code is there as long as the process
_functions: dict[bytes, dict[str, int]] = {}  # by an object file's SHA-256: kernels of one module are in one


class Section(NamedTuple):
    """A section's header, as the file has it."""

    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


class Symbol(NamedTuple):
    """A symbol, as the file has it."""

    name: int
    info: int
    other: int
    section: int
    value: int
    size: int


def load(code: bytes, entry: str) -> int:
    """The address of the function `entry` of an object file's bytes, which are loaded once. OSError where the kernel refuses
    executable memory.
    """
    digest = hashlib.sha256(code).digest()
    if digest not in _functions:
        _functions[digest] = _load(code)
    return _functions[digest][entry]


def _load(code: bytes) -> dict[str, int]:
    """The address of each of its functions."""
    (table,) = struct.unpack_from("<Q", code, 40)
    (count,) = struct.unpack_from("<H", code, 60)
    sections = [Section(*SECTION.unpack_from(code, table + i * SECTION.size)) for i in range(count)]
    (symbol_table,) = (section for section in sections if section.type == SYMBOLS)
    symbols = [Symbol(*values) for values in SYMBOL.iter_unpack(_bytes_of(code, symbol_table))]
    strings = _bytes_of(code, sections[symbol_table.link])
    names = [strings[symbol.name : strings.index(b"\0", symbol.name)].decode() for symbol in symbols]

    places, end = {}, 0  # {index of a section: where in memory}
    for index, section in enumerate(sections):
        if section.flags & LOADED and section.type != UNWIND:
            places[index] = -(-end // max(section.alignment, 1)) * max(section.alignment, 1)
            end = places[index] + section.size
    common = {}  # {index of a symbol: where in memory}
    for index, symbol in enumerate(symbols):
        if symbol.section == COMMON:  # its value is an alignment
            common[index] = -(-end // symbol.value) * symbol.value
            end = common[index] + symbol.size

    memory = mmap.mmap(-1, max(end, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for index, place in places.items():
        if sections[index].type != NO_BYTES:
            memory[place : place + sections[index].size] = _bytes_of(code, sections[index])

    def address_of(index: int) -> int:
        symbol = symbols[index]
        if symbol.section == UNDEFINED:
            return _outside(names[index])
        if symbol.section == ABSOLUTE:
            return symbol.value
        return base + (common[index] if symbol.section == COMMON else places[symbol.section] + symbol.value)

    for section in sections:
        if section.type == RELOCATIONS and section.info in places:
            for offset, info, addend in RELOCATION.iter_unpack(_bytes_of(code, section)):
                place, value = places[section.info] + offset, address_of(info >> 32) + addend
                kind = info & 0xFFFFFFFF
                if kind == WORD:
                    struct.pack_into("<Q", memory, place, value)
                elif kind == RELATIVE_WORD:
                    struct.pack_into("<q", memory, place, value - base - place)
                elif kind in (RELATIVE, RELATIVE_CALL):
                    struct.pack_into("<i", memory, place, value - base - place)
                else:
                    raise NotImplementedError(f"relocation {kind} of x86-64")
    if _libc.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(len(memory)), PROT_READ_EXEC):
        raise OSError(ctypes.get_errno(), "no executable memory for compiled kernels")
    _kept.append(memory)
    return {name: address_of(i) for i, name in enumerate(names) if symbols[i].info & 0xF == FUNCTION}


def _bytes_of(code: bytes, section: Section) -> bytes:
    return code[section.offset : section.offset + section.size]


def _outside(name: str) -> int:
    """The address of a function of the C library."""
    found = getattr(_libc, "abort" if name.startswith(RAISING) else name)
    address = ctypes.cast(found, ctypes.c_void_p).value
    assert address
    return address
