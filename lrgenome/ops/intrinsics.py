"""Arithmetic inside kernels: bfloat16, fused multiply-add, prefetch, and elementary functions that vectorise.

numba vectorises ``exp`` only with Intel's SVML, so `exp` and `expm1` are polynomials of our own (within 2 units
in the last place in float32), which LLVM vectorises for whatever the CPU has. Every fusion of a multiplication
with an addition is written out, so that results are the same bits whatever the compiler does.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, overload, register_jitable

from lrgenome.ops.jit import FUSES

CACHE_LINE = 64
"""Bytes that one prefetch brings."""


def _bits_of_f32_code(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.int32))

    return types.int32(types.float32), codegen


def _f32_of_bits_code(typingctx: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(types.float32))

    return types.float32(types.int32), codegen


def _fma_code(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args) if FUSES else builder.fadd(builder.fmul(args[0], args[1]), args[2])

    return types.float32(types.float32, types.float32, types.float32), codegen


def _prefetch_code(typingctx: Any, array: Any, i: Any, j: Any, k: Any, write: Any) -> Any:
    if not (isinstance(array, types.Array) and array.ndim == 3 and isinstance(write, types.IntegerLiteral)):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        word = context.get_value_type(types.intp)
        index = [builder.sext(n, word) if n.type.width < word.width else n for n in args[1:4]]
        view = context.make_array(array)(context, builder, args[0])
        place = cgutils.get_item_pointer(context, builder, array, view, index, wraparound=False)
        place = builder.bitcast(place, cgutils.voidptr_t)
        flag = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, flag, flag, flag])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        # Into every level of cache; data, not code.
        builder.call(call, [place, flag(write.literal_value), flag(3), flag(1)])
        return context.get_dummy_value()

    return types.none(array, i, j, k, write), codegen


_bits_of_f32: Any = intrinsic(_bits_of_f32_code)
_f32_of_bits: Any = intrinsic(_f32_of_bits_code)

fma: Any = intrinsic(_fma_code)
"""a * b + c in float32, rounded once where the CPU can."""

prefetch: Any = intrinsic(_prefetch_code)
"""Ask for the cache line of element (i, j, k) of a 3-D array, to be written if `write` is 1; any index will do."""


def to_f32(value: Any) -> Any:
    """Read a stored number (float32, or bfloat16 as uint16) as float32; inside kernels only."""
    raise NotImplementedError("only inside a compiled kernel")


@overload(to_f32, inline="never")
def _to_f32(value: Any) -> Any:
    # numba wants the implementation's annotations to equal the stub's.
    def float32(value: Any) -> Any:
        return np.float32(value)

    def bfloat16(value: Any) -> Any:
        return _f32_of_bits(np.int32(np.int32(value) << np.int32(16)))

    return float32 if isinstance(value, types.Float) else bfloat16


def from_f32(value: Any, like: Any) -> Any:
    """Round a float32 to the storage type of the array `like` (to nearest even); inside kernels only."""
    raise NotImplementedError("only inside a compiled kernel")


@overload(from_f32, inline="never")
def _from_f32(value: Any, like: Any) -> Any:
    def float32(value: Any, like: Any) -> Any:
        return value

    def bfloat16(value: Any, like: Any) -> Any:
        bits = np.uint32(_bits_of_f32(np.float32(value)))
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        # A NaN must stay one: rounding its mantissa up could carry into the sign.
        keep = value == value
        return np.uint16(rounded >> np.uint32(16)) if keep else np.uint16(0x7FC0)

    return float32 if isinstance(like.dtype, types.Float) else bfloat16


@register_jitable
def _exp_parts(x: Any) -> Any:
    """Return (p, s) with exp(x) = s * (1 + p), s a power of two, p = expm1 of the reduced argument."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0))
    shifted = fma(x, np.float32(1.4426950408889634), np.float32(12582912.0))
    n = shifted - np.float32(12582912.0)
    r = fma(n, np.float32(-0.693359375), x)
    r = fma(n, np.float32(2.12194440e-4), r)
    q = np.float32(1.9875691500e-4)
    q = fma(q, r, np.float32(1.3981999507e-3))
    q = fma(q, r, np.float32(8.3334519073e-3))
    q = fma(q, r, np.float32(4.1665795894e-2))
    q = fma(q, r, np.float32(1.6666665459e-1))
    q = fma(q, r, np.float32(5.0000001201e-1))
    p = fma(q, r * r, r)
    s = _f32_of_bits((_bits_of_f32(shifted) - np.int32(0x4B400000) + np.int32(127)) << np.int32(23))
    return p, s


@register_jitable
def exp(x: Any) -> Any:
    """exp(x) in float32, clamped to the range of normal numbers."""
    p, s = _exp_parts(x)
    return fma(s, p, s)


@register_jitable
def expm1(x: Any) -> Any:
    """exp(x) - 1 in float32 without cancellation near zero."""
    p, s = _exp_parts(x)
    return fma(s, p, s - np.float32(1.0))


@register_jitable
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) in float32."""
    return np.float32(1.0) / (np.float32(1.0) + exp(-x))


@register_jitable
def u(index: Any) -> Any:
    """Make an index unsigned: numba then leaves out the test for negative ones, which keeps loops from vectorising."""
    return np.uint64(index)


_GELU_1 = np.float32(1.5957691216057308)
_GELU_3 = np.float32(1.5957691216057308 * 0.044715)
_GELU_9 = np.float32(3.0 * 1.5957691216057308 * 0.044715)


@register_jitable
def gelu(x: Any) -> Any:
    """GELU, tanh form: x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)), as RecurrentGemma uses it."""
    return x * sigmoid(x * fma(_GELU_3, x * x, _GELU_1))


@register_jitable
def gelu_and_slope(x: Any) -> Any:
    """Return (gelu(x), d gelu / dx)."""
    square = x * x
    s = sigmoid(x * fma(_GELU_3, square, _GELU_1))
    slope = fma(x * s * (np.float32(1.0) - s), fma(_GELU_9, square, _GELU_1), s)
    return x * s, slope
