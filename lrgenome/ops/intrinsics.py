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


def _lane_sum_code(typingctx: Any, array: Any, i: Any, lanes: Any) -> Any:
    if not (isinstance(array, types.Array) and array.ndim == 2 and isinstance(lanes, types.IntegerLiteral)):
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width = lanes.literal_value
        view = context.make_array(array)(context, builder, args[0])
        word = context.get_value_type(types.intp)
        row = builder.sext(args[1], word) if args[1].type.width < word.width else args[1]
        place = cgutils.get_item_pointer(context, builder, array, view, [row, word(0)], wraparound=False)
        vector = ir.VectorType(ir.FloatType(), width)
        total = builder.load(builder.bitcast(place, vector.as_pointer()), align=4)
        # A plain loop of float additions keeps its order and would run one lane at a time.
        while width > 1:
            width //= 2
            low, high = (
                builder.shuffle_vector(total, total, ir.Constant(ir.VectorType(ir.IntType(32), width), list(picked)))
                for picked in (range(width), range(width, 2 * width))
            )
            total = builder.fadd(low, high)
        return builder.extract_element(total, ir.IntType(32)(0))

    return types.float32(array, i, lanes), codegen


_bits_of_f32: Any = intrinsic(_bits_of_f32_code)
_f32_of_bits: Any = intrinsic(_f32_of_bits_code)

fma: Any = intrinsic(_fma_code)
"""a * b + c in float32, rounded once where the CPU can."""

prefetch: Any = intrinsic(_prefetch_code)
"""Ask for the cache line of element (i, j, k) of a 3-D array, to be written if `write` is 1; any index will do."""


lane_sum: Any = intrinsic(_lane_sum_code)
"""Sum of the first `lanes` (a constant power of two) numbers in row i of a 2-D float32 array, by halves."""


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
def exp2_parts(x: Any) -> Any:
    """Return (p, s) with 2^x = s * (1 + p) for x <= 0 in float32, s a power of two, within 2.5 units; not below 2^-126.

    s + s p loses the last digits of a factor near 1; h * 2^x = s * fma(p, h, h) does not.
    """
    x = max(x, np.float32(-126.0))
    # 1.5 * 2^23 + 127: the low bits of the sum are the biased exponent of the nearest whole number.
    shifted = x + np.float32(12583039.0)
    r = x - (shifted - np.float32(12583039.0))
    q = np.float32(1.3264726899389547e-3)
    q = fma(q, r, np.float32(9.671512660598576e-3))
    q = fma(q, r, np.float32(5.5507337442434156e-2))
    q = fma(q, r, np.float32(2.4022242084918466e-1))
    q = fma(q, r, np.float32(6.931469775984717e-1))
    return q * r, _f32_of_bits(_bits_of_f32(shifted) << np.int32(23))


@register_jitable
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)) in float32."""
    return np.float32(1.0) / (np.float32(1.0) + exp(-x))


@register_jitable
def softplus(x: Any) -> Any:
    """log(1 + exp(x)) in float32, to a relative error even where it is tiny."""
    w = exp(-abs(x))
    # log(1 + w) = 2 artanh(s), s in [0, 1/3].
    s = w / (np.float32(2.0) + w)
    square = s * s
    q = np.float32(2.8011987356020357e-1)
    q = fma(q, square, np.float32(2.800180514404934e-1))
    q = fma(q, square, np.float32(4.002152724893177e-1))
    q = fma(q, square, np.float32(6.66664162854319e-1))
    q = fma(q, square, np.float32(2.0))
    return fma(s, q, max(x, np.float32(0.0)))


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


@register_jitable
def silu(x: Any) -> Any:
    """SiLU: x * sigmoid(x)."""
    return x * sigmoid(x)


@register_jitable
def silu_and_slope(x: Any) -> Any:
    """Return (silu(x), d silu / dx)."""
    s = sigmoid(x)
    y = x * s
    return y, fma(y, np.float32(1.0) - s, s)
