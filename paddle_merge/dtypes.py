"""The one dtype table: what safetensors calls a dtype, how wide it is, and what it is merged in.

A merge computes in at least twice the width of the storage: 8- and 16-bit floats in float32; float32 in float64, because
float32 arithmetic can't promise one unit in the last place of a float32. float64 stays float64. Integers and booleans are
never averaged (`compute` is None).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class DType:
    """One storage dtype.

    name: as NumPy, Paddle and config.json write it, "bfloat16".
    tag: as a safetensors header writes it, "BF16".
    itemsize: bytes per element.
    raw: the NumPy dtype its bytes are viewed as; 16-bit floats are handled as uint16 bits, 8-bit ones as uint8.
    compute: "float32" or "float64", the dtype it is merged in; None if it is never averaged.
    """

    name: str
    tag: str
    itemsize: int
    raw: str
    compute: str | None = None

    @property
    def is_float(self) -> bool:
        return self.compute is not None


BFLOAT16 = DType("bfloat16", "BF16", 2, "<u2", "float32")
FLOAT16 = DType("float16", "F16", 2, "<u2", "float32")
FLOAT32 = DType("float32", "F32", 4, "<f4", "float64")
FLOAT64 = DType("float64", "F64", 8, "<f8", "float64")
# The two 8-bit floats of the Open Compute Project, as plain numbers. What is too large becomes NaN in E4M3, which has no
# infinity, and Inf in E5M2. (464, half-way from E4M3's largest, 448, to what would be the next, still becomes 448.)
FLOAT8_E4M3FN = DType("float8_e4m3fn", "F8_E4M3", 1, "|u1", "float32")
FLOAT8_E5M2 = DType("float8_e5m2", "F8_E5M2", 1, "|u1", "float32")
UINT16 = DType("uint16", "U16", 2, "<u2")

DTYPES = (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    UINT16,
    DType("bool", "BOOL", 1, "|b1"),
    DType("int8", "I8", 1, "|i1"),
    DType("uint8", "U8", 1, "|u1"),
    DType("int16", "I16", 2, "<i2"),
    DType("int32", "I32", 4, "<i4"),
    DType("uint32", "U32", 4, "<u4"),
    DType("int64", "I64", 8, "<i8"),
    DType("uint64", "U64", 8, "<u8"),
)
BY_TAG = {dtype.tag: dtype for dtype in DTYPES}
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
FLOATS = {dtype.name: dtype for dtype in DTYPES if dtype.is_float}


def compute_dtype(dtypes: Iterable[DType]) -> str:
    """What tensors of these storage dtypes are merged in together: the widest of their compute dtypes."""
    return "float64" if any(dtype.compute == "float64" for dtype in dtypes) else "float32"


LARGEST = 1e30  # so that what is computed with it stays within float32
