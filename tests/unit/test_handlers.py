"""What may run in a signal handler of the native core: functions that end in ``_in_handler``, and what those may call.

A handler, and a function with such a name, calls functions with such names, static inline helpers that obey the same
rule, atomics, and a short list of functions of the C library that are async-signal-safe. The sources are read as text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "native" / "src"
SUFFIX = "_in_handler"

# Async-signal-safe: signal-safety(7), or without a call of the system at all.
SAFE = {
    "abort", "clock_gettime", "getauxval", "memcmp", "memcpy", "mprotect", "raise", "sigaction", "strlen", "syscall",
    "timer_settime", "write",
    # Has been called before: sealing a session makes the tables of the checksum.
    "pthread_once",
    # Handlers of others, which take what they are given.
    "sa_handler", "sa_sigaction",
}  # fmt: skip
SAFE_PREFIXES = ("atomic_", "__builtin_", "_mm_", "__crc32", "CRC_", "_Static_assert")
# Macros of the core: an assertion, and a delay that only test builds have.
MACROS = {"MPK__ASSERT", "mpk__chaos"}
# What runs in handlers under another name is held to the same rule: public, or called from everywhere.
OTHERS = {
    "mpk__prim_now_ns", "clock_ns",
    "mpk_crc32c", "mpk__crc32c_portable", "has_instruction", "with_instruction", "load", "skip_stream",
}  # fmt: skip
KEYWORDS = {"if", "for", "while", "switch", "return", "sizeof", "do", "else", "__attribute__", "target", "offsetof"}

_NOISE = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.DOTALL)
_FUNCTION = re.compile(
    r"^(?!#|typedef|struct|enum)([A-Za-z_][^;{}=#]*?\b([A-Za-z_]\w*)\s*\([^;{}]*\))\s*\{", re.MULTILINE
)
_CALL = re.compile(r"\b([A-Za-z_]\w*)\s*\(")
_HANDLER = re.compile(r"\.sa_(?:sigaction|handler)\s*=\s*(?!SIG_)([A-Za-z_]\w*)\s*[,}]")


def functions(text: str) -> Iterator[tuple[str, bool, set[str]]]:
    """List the functions of a source file: name, whether it is inline, and what it calls."""
    text = _NOISE.sub(" ", text)
    text = re.sub(r"^[ \t]*#(?:.*\\\n)*.*$", "", text, flags=re.MULTILINE)
    for found in _FUNCTION.finditer(text):
        depth, end = 1, found.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        body = text[found.end() : end - 1]
        yield found[2], "inline" in found[1].split(), set(_CALL.findall(body)) - KEYWORDS


def violations(sources: dict[str, str]) -> list[str]:
    """List each call in a handler of what may not run in one, as ``caller calls callee``."""
    calls: dict[str, set[str]] = {}
    inline: set[str] = set()
    handlers: set[str] = set()
    for text in sources.values():
        handlers |= set(_HANDLER.findall(_NOISE.sub(" ", text)))
        for name, is_inline, called in functions(text):
            calls[name] = calls.get(name, set()) | called
            inline |= {name} if is_inline else set()
    pending = {name for name in calls if name.endswith(SUFFIX)} | handlers | (OTHERS & calls.keys())
    seen: set[str] = set()
    wrong = []
    while pending:
        caller = pending.pop()
        seen.add(caller)
        for callee in sorted(calls.get(caller, ())):
            if callee in SAFE | MACROS or callee.startswith(SAFE_PREFIXES):
                continue
            if callee.endswith(SUFFIX) or callee in inline | OTHERS:
                pending |= {callee} - seen
            else:
                wrong.append(f"{caller} calls {callee}")
            if callee not in calls and callee not in OTHERS:
                wrong.append(f"{callee}, which {caller} calls, is not there")
    return sorted(set(wrong))


@pytest.fixture(scope="module")
def sources() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(SOURCES.glob("*.[ch]"))}


def test_handlers_call_what_may_run_in_them(sources: dict[str, str]) -> None:
    assert violations(sources) == []


def test_what_is_read_is_all_of_it(sources: dict[str, str]) -> None:
    """The handlers are found, and each function that has the name."""
    pattern = re.compile(rf"^[a-z].*?\b(\w+{SUFFIX})\(", re.MULTILINE)
    named = {name for text in sources.values() for name in pattern.findall(text)}
    read = {name for text in sources.values() for name, _, _ in functions(text)}
    assert named <= read, "these are declared and not found"
    assert {name for text in sources.values() for name in _HANDLER.findall(text)} == {"on_fault", "on_term"} <= read


MUTANTS = [
    ("fault.c", "    int saved_errno = errno;\n", "    int saved_errno = errno;\n    free(context);\n",
     "on_fault calls free"),
    ("fault.c", "    uint64_t start = mpk__prim_now_ns();\n    mpk__pool_wait", "    usleep(1);\n    mpk__pool_wait",
     "wait_for_room_in_handler calls usleep"),
    ("pool.c", "    atomic_fetch_sub(&pool->used, 1);\n", "    mpk__pool_destroy(pool);\n",
     "mpk__pool_give_in_handler calls mpk__pool_destroy"),
    ("blocks.h", "    MPK__ASSERT(mpk__may_follow(*expected, word));\n", "    printf(\"%u\", b);\n",
     "mpk__word_swap_in_handler calls printf"),
    ("epoch.h", "    return (now_ns - atomic", "    pthread_mutex_lock(0);\n    return (now_ns - atomic",
     "mpk__epoch_us calls pthread_mutex_lock"),
    ("prim_linux.c", "    clock_gettime(clock, &t);\n", "    localtime(&t.tv_sec);\n", "clock_ns calls localtime"),
    ("term.c", "    uint64_t now = mpk__prim_now_ns(), none = 0;\n", "    uint64_t now = malloc(1), none = 0;\n",
     "on_term calls malloc"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "old", "new", "told"), MUTANTS)
def test_each_of_these_is_found(sources: dict[str, str], file: str, old: str, new: str, told: str) -> None:
    assert old in sources[file]
    assert told in violations(sources | {file: sources[file].replace(old, new, 1)})
