"""Names of torch's functions, methods and properties by what a recording does with a call of them."""

from __future__ import annotations

from collections.abc import Mapping

from model_factory.program.ir import GuardKind

# Answered from the fake tensor and not recorded: their answers are sizes, which stay symbols.
SIZE_QUESTIONS = frozenset(
    ("size dim ndimension numel nelement __len__ stride storage_offset is_contiguous is_nested is_same_size").split()
)
DTYPE_QUESTIONS = frozenset("is_floating_point is_complex is_signed element_size".split())
SIZE_PROPERTIES = frozenset("shape ndim device layout nbytes names is_sparse is_quantized is_nested is_meta".split())
DTYPE_PROPERTIES = frozenset("dtype itemsize".split())
# Ops whose result sizes follow from a formula: what their kernels ask of sizes besides is about speed or validity.
KERNELS = frozenset(
    (
        "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d linear matmul bmm baddbmm "
        "addmm layer_norm group_norm batch_norm instance_norm rms_norm scaled_dot_product_attention softmax "
        "gelu silu relu"
    ).split()
)
# Torch's C++ rules for these take sizes for plain numbers, and its Python ones do not; so inside stock modules (RNNs).
COMPOSITES = frozenset("interpolate upsample bilinear pad constant_pad_nd".split())
# Ops that return the tensor itself where it has the wanted dtype or layout already.
MAYBE_ITSELF = frozenset("to type type_as float double half bfloat16 long int bool contiguous cpu cuda".split())
SQUEEZES = frozenset("squeeze squeeze_".split())
# Arithmetic on sizes; its results are symbols like sizes.
SIZE_ARITHMETIC = frozenset("sym_float sym_int sym_ite sym_max sym_min sym_not sym_sum _sym_sqrt".split())
VALUE_QUESTIONS = frozenset("__float__ __complex__ __contains__ tolist numpy".split())
# Questions about values whose answer becomes a guard of the program.
DECISIONS: Mapping[str, GuardKind] = {"__bool__": "bool", "is_nonzero": "bool", "__int__": "int", "__index__": "int"}
DECIDING_OPS = frozenset("equal allclose".split())
# Of the questions about sizes, those whose answer depends on the sizes themselves, or on how many there are.
SIZE_READS = frozenset(
    "shape nbytes size numel nelement __len__ stride storage_offset is_same_size dim ndimension ndim".split()
)
