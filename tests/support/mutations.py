"""Damage files at random: bytes, JSON, YAML, safetensors headers, pickles and zips. A seeded generator makes all choices."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.support import attacks

Mutator = Callable[[Random, bytes, Sequence[bytes]], bytes]  # arguments: generator, content, other contents to splice in
NUMBERS = (
    0,
    1,
    -1,
    2,
    3,
    7,
    255,
    256,
    2**15,
    2**16,
    2**31 - 1,
    2**31,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64,
    -(2**63),
    2**80,
    10**400,
)
WORDS = ("", ".", "..", "../secret.safetensors", "../secret.distcp", "/etc/passwd", "a/../../b", "a\\b", "model.safetensors",
         "0_0.distcp", "config.json", "\0", "a\0b", "\ud800", "\udc80", "\u202e", "W", "w", "\x1b[31m", "x\ny", "é",
         "e\u0301", "None",
         "nan", "F32", "F16", "BF16", "I64", "U16", "BOOL", "F8_E4M3", "F4", "float32", "bfloat16", "x" * 300,
         "+".join("ab" * 20),
         "(a+)+$", "(", "llama", "qwen2", "phi3", "a{99999999999}", "1e999", "true", "0x10", "1_000")  # fmt: skip
STRUCTURE = b'{}[]",:0123456789-.eE\\u \t\n\0()tRbu.sh\x94\x85\x86\x93'


def any_bytes(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return the content with bits or bytes changed, parts removed, inserted or repeated, or another file spliced in."""
    out = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        at, end = sorted((random.randrange(len(out) + 1), random.randrange(len(out) + 1)))
        way = random.randrange(10)
        if way < 3 and out:
            out[random.randrange(len(out))] ^= 1 << random.randrange(8)
        elif way == 3 and out:
            out[random.randrange(len(out))] = random.choice(STRUCTURE)
        elif way == 4:
            del out[at : min(end, at + random.choice((1, 4, 8, 100, 10**6)))]
        elif way == 5:
            del out[random.choice((at, end, len(out) - 1 if out else 0, 8)) :]
        elif way == 6:
            out[at:at] = random.choice(
                (random.randbytes(random.randrange(1, 20)), out[at:end][:500], b"\0" * 8, b"[" * 2000)
            )
        elif way == 7:
            size = random.choice((1, 2, 4, 8))
            out[at : at + size] = (random.choice(NUMBERS) % 256**size).to_bytes(size, random.choice(("little", "big")))  # type: ignore[arg-type]
        elif way == 8:
            other = random.choice(others)
            out[at:] = other[random.choice((at, random.randrange(len(other) + 1))) :]
        else:
            out[at:end] = out[at:end][::-1] if random.randrange(2) else b"\xff" * (end - at)
    return bytes(out)


# --- JSON and YAML ---------------------------------------------------------------------------------------------------


class Raw(str):
    """Text that `written` puts into JSON unchanged."""


class _Twice(dict[str, Any]):
    """A JSON object in which a key occurs twice."""

    def __init__(self, pairs: list[tuple[str, Any]]):
        super().__init__(pairs)
        self._pairs = pairs

    def items(self) -> Any:
        return self._pairs


def any_value(random: Random) -> Any:
    """Return a random JSON value, to replace one that a reader expects."""
    way = random.randrange(13)
    if way < 3:
        return random.choice(NUMBERS)
    if way < 6:
        return random.choice(WORDS)
    if way < 8:
        return random.choice((None, True, False, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"), 2.0))
    if way == 8:
        depth = random.choice((1, 3, 100, 300, 400, 700, *range(900, 1000, 7), 3000, 100_000))
        return Raw(random.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth)))
    if way == 9:
        return [random.choice(NUMBERS) for _ in range(random.choice((1, 2, 3, 70, 400)))]
    if way == 10:
        return {random.choice(WORDS): any_value(random) for _ in range(random.randrange(4))}
    return [any_value(random) for _ in range(random.randrange(4))]


def mutate(random: Random, value: Any) -> Any:
    """Return the value with one random change at any depth."""
    if isinstance(value, dict) and value and random.randrange(8):
        key, way = random.choice(list(value)), random.randrange(12)
        changed = {name: (mutate(random, item) if name == key and way < 7 else item) for name, item in value.items()}
        if way == 7:
            del changed[key]
        elif way == 8:
            changed[random.choice((*WORDS, key.upper(), key + " ", *value)) if isinstance(key, str) else key] = changed.pop(
                key
            )
        elif way == 9:
            changed[random.choice((*WORDS, key.swapcase(), f"{key}_")) if isinstance(key, str) else key] = any_value(random)
        elif way == 10:
            other = random.choice(list(value))
            changed[key], changed[other] = changed[other], changed[key]
        elif way == 11:
            return _Twice([*changed.items(), (key, mutate(random, changed[key]))])
        return changed
    if isinstance(value, list) and value and random.randrange(4):
        at, way = random.randrange(len(value)), random.randrange(5)
        if way == 0:
            return value[:at] + value[at + 1 :]
        if way == 1:
            return [*value, value[at]]
        return [*value[:at], mutate(random, value[at]), *value[at + 1 :]]
    if type(value) is int and random.randrange(2):
        return random.choice((value + 1, value - 1, -value, value * 2, float(value), str(value), value * 2**32, value / 2))
    return any_value(random)


def written(value: Any) -> str:
    """Return the value as JSON; unlike json.dumps, it can write a key twice."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {written(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(written(item) for item in value) + "]"
    return value if isinstance(value, Raw) else json.dumps(value)


def any_json(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return a JSON file with values changed, or in another encoding, or with junk at its end."""
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        value = mutate(random, value)
    text = written(value)
    way = random.randrange(60)
    if way == 0:
        return text.encode(random.choice(("utf-16", "utf-8-sig", "utf-32")))
    if way == 1:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass") if len(text) < 3000 else b""
    if way == 2:
        return (text + random.choice((",", "{}", "\0", " " * 5000, "//"))).encode()
    return text.encode()


def any_yaml(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return a YAML file with lines changed to what only YAML has: anchors, tags, dates, sets, keys of any type."""
    lines = content.decode().splitlines()
    values = ["~", "&a [*a]", "!!python/object/apply:os.system ['x']", "!!binary aGk=", "2001-99-99", "2001-01-01",
              "!!timestamp x", "!!int x",
              "!!int ''", "!!float ''", "!!bool x", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]", "1:30:00", "0x_",
              "0b", "0o7", ".inf", ".nan", "yes", "1_0",
              "? a", "*nowhere", "{? [a]: 1}", "{[a]: 1}", "<<: *a", "!!map x", "'", "\t", "|", ">", "- - - -",
              "%YAML 9.9", "!<x> y", "!x y", "\x07",
              "&x [&y [&z [1,1,1,1],*z,*z,*z],*y,*y,*y]", "[" * 500, "- " * 500, "{" * 500, '"\\ud800"', '"\\U00110000"',
              '"\\x1b"', "0" * 5000 + "1", "1" * 5000, "0x" + "f" * 5000]  # fmt: skip
    values.append("[" + "&l0 [a,a], " + ", ".join(f"&l{n} [*l{n - 1},*l{n - 1},*l{n - 1}]" for n in range(1, 40)) + "]")
    for _ in range(random.choice((1, 1, 2))):
        at = random.randrange(len(lines))
        name = lines[at].partition(":")[0]
        shown = random.choice((*values, None))
        value = written(any_value(random)) if shown is None else shown
        lines[at] = random.choice(
            (f"{name}: {value}", f"{name}: {value}", lines[at], f"{value}: 1", f"{name}: [{value}]", value)
        )
        lines.insert(random.randrange(len(lines)), random.choice(("", "", "---", lines[at], "...", f"<<: {{{name}: 3}}")))
    return "\n".join(lines).encode("utf-8", "surrogatepass")


# --- the formats of weights ------------------------------------------------------------------------------------------


def safetensors(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return a safetensors file with its header, the header's length, or the offsets of tensors changed."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8:end]), content[end:]
    way = random.randrange(6)
    if way == 0:
        return (
            struct.pack(
                "<Q", random.choice((0, 1, end - 7, end - 9, len(content) - 8, 10**8, 2**30, 2**31, 2**63, 2**64 - 1))
            )
            + content[8:]
        )
    if way == 1:  # two tensors that share bytes, or overlap
        names = [name for name in header if name != "__metadata__"]
        one, other = random.sample(names, 2)
        for key in random.sample(("dtype", "shape", "data_offsets"), random.randrange(1, 4)):
            header[one][key] = header[other][key]
    elif way == 2:
        info = header[random.choice([name for name in header if name != "__metadata__"])]
        shift = random.choice((-8, -1, 1, 4, len(body), 2**62, 2**63, 2**64))
        info["data_offsets"] = [offset + shift for offset in info["data_offsets"]]
    elif way == 3:
        info = header[random.choice([name for name in header if name != "__metadata__"])]
        info["shape"] = random.choice(
            (
                [2**32, 2**32],
                [2**63, 2],
                [0, 2**62],
                [*info["shape"], 1],
                info["shape"][::-1],
                [1] * 500,
                [2**62] * 400,
                [0] * 9,
            )
        )
        if random.randrange(2):
            size = random.choice((0, 4, 2**64))
            info["data_offsets"] = [0, size]
    else:
        header = mutate(random, header)
    text = written(header).encode()
    text += b" " * random.choice((0, -len(text) % 8, 0 if len(text) > 4000 else 5000))
    return struct.pack("<Q", len(text)) + text + body


def pickled(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return a pickle with opcodes removed, repeated, exchanged, given other arguments, or with an attack inserted."""
    places = [place for _, _, place in pickletools.genops(content)]
    steps = [content[one:other] for one, other in zip(places, [*places[1:], len(content)], strict=True)]  # type: ignore[misc]
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        at, to, way = random.randrange(len(steps)), random.randrange(len(steps) + 1), random.randrange(12)
        if way == 0:
            del steps[at]
            steps = steps or [b"."]
        elif way == 1:
            steps[to:to] = steps[at : at + random.choice((1, 1, 2, 5, 40))]
        elif way == 2:
            steps[at] = random.choice(steps)
        elif way == 3:
            steps[to:to] = [random.choice(list(attacks.VALUES.values()))]
        elif way == 4:
            steps[at] = random.choice(list(attacks.VALUES.values()))
        elif way == 5:
            steps[to:to] = [
                bytes([random.choice(b"()]}NKhqtRbsuae012.l\x80\x81\x85\x86\x87\x88\x89\x90\x91\x92\x93\x94\x95\x97\x98")])
            ]
        elif way == 6:
            number = random.choice(NUMBERS) % 2**63
            steps[at] = random.choice(
                (
                    b"\x8a\x09" + number.to_bytes(9, "little"),
                    b"J" + struct.pack("<i", -1),
                    b"K\x00",
                    b"M\xff\xff",
                    b"G" + struct.pack(">d", 2.0),
                )
            )
        elif way == 7:
            steps[at] = attacks.text(random.choice(WORDS).encode("utf-8", "replace").decode())
        elif way == 8:  # a wrong length
            code = steps[at][:1]
            size = {b"B": 4, b"X": 4, b"\x8e": 8, b"\x8d": 8, b"C": 1, b"\x8c": 1, b"\x95": 8, b"\x8a": 1, b"\x8b": 4}.get(
                code, 0
            )
            length = (
                (random.choice((*NUMBERS, len(content), len(steps[at]) - size)) % 256**size).to_bytes(size, "little")
                if size
                else b""
            )
            steps[at] = code + length + steps[at][1 + size :]
        elif way == 9:
            small = [place for place, step in enumerate(steps) if step[:1] in b"KMJhqjr\x88\x89"]
            if small:
                one, other = random.choice(small), random.choice(small)
                steps[one], steps[other] = steps[other], steps[one]
        elif way == 10:
            cut = random.randrange(len(steps))
            steps = steps[cut:] + steps[:cut] if random.randrange(3) == 0 else [*steps[: max(cut, 1)], b"."]
        else:
            steps[at] = any_bytes(random, steps[at], others)[:2000]
    return b"".join(steps)


def zipped(random: Random, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return a zip file with members damaged, removed, repeated, renamed, compressed, flagged or reordered, or with junk."""
    archive = zipfile.ZipFile(io.BytesIO(content))
    members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at, way = random.randrange(len(members)), random.randrange(12)
    name, held = members[at]
    if way < 4:
        members = [(name, pickled(random, held, others) if name.endswith("data.pkl") else held) for name, held in members]
    elif way == 4:
        members[at] = name, any_bytes(random, held, others)
    elif way == 5:
        members.pop(at)
    elif way == 6:
        members.insert(random.randrange(len(members) + 1), (name, random.choice((held, random.choice(members)[1], b""))))
    elif way == 7:
        root, _, last = name.rpartition("/")
        word = random.choice(WORDS).encode("utf-8", "replace").decode()
        members[at] = (
            random.choice(
                (f"{root}/{word}", f"{word}/{last}", f"../{name}", f"/{name}", name.upper(), f"b/{last}", f"{name}/")
            ),
            held,
        )
    elif way == 8:
        random.shuffle(members)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        for number, (name, held) in enumerate(members):
            info = zipfile.ZipInfo(name)
            if way == 9 and number == at:
                info.create_system, info.external_attr = 3, random.choice((0o120777, 0o40755, 0o10644)) << 16
            if way == 10 and number == at:
                info.compress_type = random.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            if way == 11 and number == at:
                info.comment, info.extra = (
                    b"x" * random.choice((0, 9, 65000)),
                    random.choice((b"", b"\x01\0\x08\0" + b"\xff" * 8, b"\xff" * 4, b"PB\1\0\0")),
                )
            archive.writestr(info, held)
    made = buffer.getvalue()
    if way == 8 and random.randrange(2):
        return random.choice((b"PK\x03\x04junk", b"#!/bin/sh\n", random.choice(others))) + made
    return any_bytes(random, made, others) if random.randrange(4) == 0 else made


BY_ENDING: dict[str, tuple[Mutator, ...]] = {
    ".json": (any_json, any_json, any_json, any_json, any_bytes),
    ".yaml": (any_yaml, any_yaml, any_yaml, any_bytes),
    ".safetensors": (safetensors, safetensors, any_bytes),
    ".pdparams": (pickled, pickled, any_bytes),
    ".distcp": (pickled, any_bytes),
    ".metadata": (pickled, pickled, pickled, any_bytes),
    ".bin": (zipped, zipped, any_bytes),
}


def damaged(random: Random, name: str, content: bytes, others: Sequence[bytes]) -> bytes:
    """Return the content damaged by a random mutator for files with this ending."""
    mutator = random.choice(BY_ENDING[name[name.rindex(".") :]])
    try:
        return mutator(random, content, others)
    except Exception:  # it is too damaged for this mutator to parse
        return any_bytes(random, content, others)
