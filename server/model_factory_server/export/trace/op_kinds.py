"""Names of torch's functions, methods and properties, grouped by their treatment in a recording."""

from __future__ import annotations

from collections.abc import Mapping

from model_factory.program.ir import GuardKind

# Read from the fake tensor and not recorded: the results are symbolic sizes.
SIZE_METHODS = frozenset(
    ("size dim ndimension numel nelement __len__ stride storage_offset is_contiguous is_nested is_same_size").split()
)
# Functions of dtypes, or of the dtypes of tensors.
DTYPE_ARITHMETIC = frozenset("promote_types result_type can_cast".split())
DTYPE_METHODS = frozenset("is_floating_point is_complex is_signed element_size".split())
SIZE_PROPERTIES = frozenset("shape ndim layout nbytes names is_sparse is_quantized is_nested is_meta".split())
DTYPE_PROPERTIES = frozenset("dtype itemsize".split())
# Ops with a formula for the result's sizes: other checks of sizes in their kernels concern speed or validity.
KERNELS = frozenset(
    (
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul bmm baddbmm "
        "addbmm addmm layer_norm group_norm batch_norm instance_norm rms_norm scaled_dot_product_attention softmax "
        "gelu silu relu _grouped_mm"
    ).split()
)
# Torch's C++ code for these ops makes numbers of sizes; torch's Python code, used in a recording, keeps symbols.
COMPOSITES = frozenset(
    (
        "conv1d conv2d conv3d interpolate upsample bilinear pad constant_pad_nd lerp addcmul addcdiv baddbmm addbmm"
    ).split()
)
# Ops that return the tensor itself if the tensor has the wanted dtype or layout already.
MAYBE_ITSELF = frozenset("to type_as as_tensor float double half bfloat16 long int bool contiguous cpu cuda".split())
SQUEEZES = frozenset("squeeze squeeze_".split())
# Arithmetic on sizes; the results are symbols, too.
SIZE_ARITHMETIC = frozenset("sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum _sym_sqrt".split())
VALUE_METHODS = frozenset("__float__ __complex__ __contains__ tolist numpy".split())
# Texts of tensors: allowed in messages.
TEXT_METHODS = frozenset({"__format__", "__repr__"})
# Reads of values; the result becomes a guard of the program.
DECISIONS: Mapping[str, GuardKind] = {"__bool__": "bool", "is_nonzero": "bool", "__int__": "int", "__index__": "int"}
# Reads of values that are possible for tensors computed from constants alone.
VALUE_READS = frozenset({*DECISIONS, *VALUE_METHODS, "item"})
DECIDING_OPS = frozenset("equal allclose".split())
# Reads of sizes with a result that depends on the sizes or on the rank.
SIZE_READS = frozenset(
    "shape nbytes size numel nelement __len__ stride storage_offset is_same_size dim ndimension ndim".split()
)
# Methods that write to the tensor, besides methods with a trailing underscore.
WRITES = frozenset(
    "__setitem__ __iadd__ __iand__ __ifloordiv__ __imod__ __imul__ __ior__ __isub__ __itruediv__ __ixor__".split()
)
