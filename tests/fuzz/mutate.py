"""Damage to files: flipped bits, cut ends, parts of other files, edited lengths and numbers. All from one generator."""

import random
import re
import zlib

__all__ = ["mutate", "with_png_sums"]

SIZES = [0, 1, 2, 7, 8, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]
SIZES += [2**40, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
WORDS = [
    b"1e999", b"-1e999", b"nan", b"NaN", b"Infinity", b"-1", b"0", b"9" * 5000, b"0x" + b"f" * 4000, b"1e-999", b"null",
    b"~", b"true", b"[]", b"{}", b"[[[[", b"{{{{", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1b[2J", b"\xed\xa0\x80",
    b"&a [*a, *a]", b"*a", b"<<: *a", b"!!python/object:os.system", b"!!binary x", b"? ", b"- ", b"os:system", b"../..",
    b"/dev/zero", b'"', b"'", b",", b";", b"\n", b"\r", b"\t", b":", b"\\u0000", b"\xe2\x80\xae", b"a" * 300000,
    b"[" * 100000, b"1," * 100000, b"-- ", b"=", b"%s", b"{0}", b"\\", b"#",
]  # fmt: skip


def mutate(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """The content with one to four kinds of damage."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        content = rng.choice(KINDS)(content, others, rng)
    return bytes(content)


def flip_bits(content: bytearray, others: list[bytes], rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if content:
            content[place(content, rng)] ^= 1 << rng.randrange(8)
    return content


def set_bytes(content: bytearray, others: list[bytes], rng: random.Random) -> bytearray:
    for _ in range(rng.choice((1, 1, 4))):
        if content:
            content[place(content, rng)] = rng.choice((0, 1, 127, 128, 254, 255, rng.randrange(256)))
    return content


def cut(content: bytearray, others: list[bytes], rng: random.Random) -> bytearray:
    return content[: rng.randint(0, len(content))]


def drop(content: bytearray, others: list[bytes], rng: random.Random) -> bytearray:
    start = place(content, rng) if content else 0
    return content[:start] + content[start + rng.choice((1, 4, 64, 1024)) :]


def repeat(content: bytearray, others: list[bytes], rng: random.Random) -> bytearray:
    start = place(content, rng) if content else 0
    part = content[start : start + rng.choice((1, 4, 64, 1024))]
    return content[:start] + part * rng.choice((2, 3, 100)) + content[start:]


def splice(content: bytearray, others: list[bytes], rng: random.Random) -> bytearray:
    other = rng.choice(others)
    start, end = sorted(rng.randint(0, len(other)) for _ in range(2))
    at = rng.randint(0, len(content))
    return content[:at] + other[start:end] + content[at + rng.choice((0, end - start)) :]


def edit_length(content: bytearray, others: list[bytes], rng: random.Random) -> bytearray:
    """A number of 1, 2, 4 or 8 bytes becomes an odd one, or one near the file's length."""
    width, order = rng.choice((1, 2, 4, 8)), rng.choice(("little", "big"))
    value = rng.choice([*SIZES, len(content), len(content) + 1, max(len(content) - 8, 0)]) % 256**width
    at = place(content, rng) if content else 0
    content[at : at + width] = value.to_bytes(width, order)
    return content


def edit_number(content: bytearray, others: list[bytes], rng: random.Random) -> bytearray:
    """Digits of a text become another number or word."""
    found = [m for m in re.finditer(rb"\d+", bytes(content[: 1 << 16]))]
    if not found:
        return edit_length(content, others, rng)
    start, end = rng.choice(found).span()
    value = rng.choice(SIZES) if rng.random() < 0.5 else None
    content[start:end] = str(value).encode() if value is not None else rng.choice(WORDS)
    return content


def insert_word(content: bytearray, others: list[bytes], rng: random.Random) -> bytearray:
    at = place(content, rng) if content else 0
    content[at:at] = rng.choice(WORDS)
    return content


def place(content: bytearray, rng: random.Random) -> int:
    """Anywhere, but as often among the first 256 bytes, where headers are, or the last, where directories are."""
    where = rng.randrange(4)
    if where == 0:
        return rng.randrange(min(256, len(content)))
    if where == 1:
        return len(content) - 1 - rng.randrange(min(256, len(content)))
    return rng.randrange(len(content))


KINDS = [flip_bits, set_bytes, cut, drop, repeat, splice, edit_length, edit_length, edit_number, insert_word]


def with_png_sums(content: bytes) -> bytes:
    """A PNG whose chunks have the right checksums again, so that decoders look at what is in them."""
    fixed, at = bytearray(content), 8
    while at + 12 <= len(fixed):
        size = int.from_bytes(fixed[at : at + 4], "big")
        end = at + 8 + size
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)
