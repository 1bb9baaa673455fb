"""Define the storage dtypes: their names, their width, and the compute dtype in which tensors of each are merged.

The compute dtype has at least twice the width of the storage dtype: float32 for 8- and 16-bit floats; float64 for float32,
because float32 arithmetic can't guarantee a float32 result to one unit in the last place. float64 is merged in float64.
Integers and booleans are never averaged (`compute` is None).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, repr=False, eq=False)
class DType:
    """Describe one storage dtype. There is one object for each, also after pickling, so dtypes are compared by identity.

    name: as NumPy, Paddle and config.json write it, such as "bfloat16".
    tag: as a safetensors header writes it, such as "BF16".
    itemsize: bytes per element.
    raw: the little-endian NumPy dtype as which its bytes are viewed; the bits of 16-bit floats as uint16, of 8-bit floats
        as uint8.
    compute: the dtype in which it is merged, "float32" or "float64"; None if it is never averaged.
    """

    name: str
    tag: str
    itemsize: int
    raw: str
    compute: str | None = None

    def __repr__(self) -> str:
        return f"DType({self.name})"

    def __reduce__(self) -> tuple[Callable[[str], DType], tuple[str]]:
        return _named, (self.name,)

    @cached_property  # planning asks for it ten times for each tensor
    def is_float(self) -> bool:
        """Return whether it is a floating-point dtype, one whose tensors can be averaged."""
        return self.compute is not None


BFLOAT16 = DType("bfloat16", "BF16", 2, "<u2", "float32")
FLOAT16 = DType("float16", "F16", 2, "<u2", "float32")
FLOAT32 = DType("float32", "F32", 4, "<f4", "float64")
FLOAT64 = DType("float64", "F64", 8, "<f8", "float64")
# The two 8-bit floats of the Open Compute Project, without a scale. A value that is too large becomes NaN in E4M3, which has
# no infinity, and infinity in E5M2. (464, half-way between E4M3's largest value, 448, and the next step, is rounded to 448.)
FLOAT8_E4M3FN = DType("float8_e4m3fn", "F8_E4M3", 1, "|u1", "float32")
FLOAT8_E5M2 = DType("float8_e5m2", "F8_E5M2", 1, "|u1", "float32")
# A power of two, as a scale of quantised weights: 2 ** (code - 127), and 255 is NaN. It is never averaged.
FLOAT8_E8M0FNU = DType("float8_e8m0fnu", "F8_E8M0", 1, "|u1")
UINT16 = DType("uint16", "U16", 2, "<u2")

DTYPES = (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FLOAT64,
    FLOAT8_E4M3FN,
    FLOAT8_E5M2,
    FLOAT8_E8M0FNU,
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


def _named(name: str) -> DType:
    return BY_NAME[name]


FLOATS = {dtype.name: dtype for dtype in DTYPES if dtype.is_float}


@dataclass(frozen=True)
class ScaledForm:
    """Describe a form in which the weights of Linear layers are stored as 8-bit codes, with a scale for each block of them.

    A number is its code times its block's scale. All other tensors are stored as plain numbers.
    name: as --out_dtype has it. block: the rows and columns that share a scale; 0 columns: all of them. scales: what the
    name of the scales has behind the weight's. scale: their dtype, float32 or bfloat16. powers: whether they are powers of
    2, as those of DeepSeek-V3.1 (ue8m0).
    """

    name: str
    block: tuple[int, int]
    scales: str
    scale: DType
    powers: bool = False

    @property
    def codes(self) -> DType:
        """The dtype of the codes."""
        return FLOAT8_E4M3FN


FP8_BLOCK = ScaledForm("fp8_block", (128, 128), "_scale_inv", FLOAT32)  # DeepSeek-V3, Qwen3-FP8
FP8_CHANNEL = ScaledForm("fp8_channel", (1, 0), "_scale", BFLOAT16)  # llm-compressor's FP8_DYNAMIC
FORMS = {form.name: form for form in (FP8_BLOCK, FP8_CHANNEL)}
OUT_DTYPES: dict[str, DType | ScaledForm] = {**FLOATS, **FORMS}


def compute_dtype(dtypes: Iterable[DType]) -> str:
    """Return the name of the dtype in which tensors of these storage dtypes are merged: the widest of their compute dtypes.

    "float32" if none of them is merged in float64.
    """
    return "float64" if any(dtype.compute == "float64" for dtype in dtypes) else "float32"


LARGEST = 1e30  # the largest weight, scale or parameter that is accepted, so that products with it stay within float32
