"""Compiled programs on disk: what one process has compiled, others load.

They stand in the user's cache folder. A file's name is the digest of all that its program depends on, so that it can't
be out of date; a file that can't be read is compiled again.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from lenet_jax import jax_settings, library, native
from lenet_jax.errors import InputError
from lenet_jax.paths import cache_folder, check_private, made_private
from lenet_jax.registry import REGISTRIES

KEEP = True
"""Whether programs are kept. Not where functions that they consist of are replaced, as tests do."""


KEPT_FROM = 0.5
"""Seconds of compiling from which JAX keeps one of the other programs in its own cache."""


def digest_of(folder: Path) -> str:
    """SHA-256 of the modules in a folder."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))).hexdigest()


SOURCES = digest_of(Path(__file__).parent)
"""Digest of the modules that programs are made of: as they are imported, not as they may be edited later."""


@functools.cache
def surroundings() -> str:
    """Digest of what all programs depend on: this package, those that it compiles with, and the processor."""
    found = hashlib.sha256(SOURCES.encode())
    versions = [metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")]
    for part in (
        sys.version,
        platform.platform(),
        library.processor().decode(errors="replace"),
        *versions,
        native.key(),
    ):
        found.update(f"{part};".encode())
    return found.hexdigest()


def compiled(lowered: jax.stages.Lowered, options: dict[str, Any]) -> jax.stages.Compiled:
    """The program, compiled with these options; without any if this version of XLA doesn't know one of them."""
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith("INVALID_ARGUMENT"):
            raise
        return lowered.compile()


def memory_of(program: Any) -> int:
    """The bytes of a compiled program on each device: arguments, results that don't reuse them, and temporaries."""
    analysis = program.memory_analysis()
    if analysis is None:
        return 0
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.argument_size_in_bytes + results + analysis.temp_size_in_bytes)


def obtain(
    program: Any, devices: Sequence[jax.Device], compile_it: Callable[[], jax.stages.Compiled]
) -> jax.stages.Compiled:
    """The program with this description for these devices, from disk or compiled. With own parts it is not kept.

    `program` has a repr that says all that the program depends on, beside what `surroundings` covers.
    """
    own = any(registry.own for registry in REGISTRIES.values())
    path = None
    with contextlib.suppress(InputError):  # a user without a home folder has no cache
        kinds = [(str(device), device.device_kind) for device in devices]
        runtime = devices[0].client.platform_version
        described = repr((program, kinds, runtime, surroundings(), jax_settings.described()))
        path = cache_folder("programs") / hashlib.sha256(described.encode()).hexdigest()
    if (
        path is None
        or own
        or jax.process_count() > 1
        or not (KEEP and jax.config.values["jax_enable_compilation_cache"])
    ):
        return compile_it()
    found = load(path, devices)
    if found is None:
        with counted_hits() as hits, without_jax_cache():
            found = compile_it()
        if not hits:  # what XLA has read from a cache it can't write again
            save(found, path)
    return found


@contextlib.contextmanager
def counted_hits() -> Iterator[list[str]]:
    """Notes each program that JAX meanwhile reads from its own cache, where older versions kept them."""
    hits: list[str] = []

    def note(event: str, **_: Any) -> None:
        hits.extend([event] * event.endswith("/cache_hits"))

    jax.monitoring.register_event_listener(note)
    try:
        yield hits
    finally:
        jax.monitoring.unregister_event_listener(note)


@contextlib.contextmanager
def without_jax_cache() -> Iterator[None]:
    """JAX doesn't keep what it compiles meanwhile in its own cache: it is kept here."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, float("inf"))
    try:
        yield
    finally:
        jax.config.update(name, before)


def load(path: Path, devices: Sequence[jax.Device]) -> jax.stages.Compiled | None:
    """Reads a program; None if there is none that can be used."""
    try:
        check_private(path.parent, path)
        serialized, arguments, results = pickle.loads(path.read_bytes())
        load_it = functools.partial(serialize_executable.deserialize_and_load, execution_devices=devices)
        found: jax.stages.Compiled = load_it(serialized, arguments, results)
    except Exception:  # a damaged file can raise anything
        return None
    return found


def save(program: jax.stages.Compiled, path: Path) -> None:
    """Writes a program, whole or not at all; without space on the disk, not at all."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(Exception):  # whatever XLA raises for what it can't serialize
        try:
            made_private(path.parent)
            part.touch(mode=0o600)
            part.write_bytes(pickle.dumps(serialize_executable.serialize(program)))
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
