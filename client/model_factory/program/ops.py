"""The closed table of ops that a program may call.

The name of an op is torch's own: ``torch.cat``, ``torch.nn.functional.gelu``, ``torch.Tensor.view``. :func:`resolve_op`
also accepts the config language's short names (``add``, ``mul``, ``getitem``, ``cat``, ``stack``, ``identity``) and the
last part of any name (``relu``, ``softmax``), first of ``torch``, then ``torch.nn.functional``, then ``torch.Tensor``.

A program from an untrusted peer can call only the listed names: no op touches files, code, storages, hooks or other
processes. The table omits names that the installed torch lacks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from model_factory.errors import ConfigError
from model_factory.program import torch_private
from model_factory.wording import nearest, quoted

Op = Callable[..., Any]

_TORCH = """
abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr adjoint all allclose amax amin aminmax angle any
arange arccos arccosh arcsin arcsinh arctan arctan2 arctanh argmax argmin argsort argwhere as_tensor asin asinh atan
atan2 atanh atleast_1d atleast_2d atleast_3d avg_pool1d baddbmm batch_norm bernoulli bilinear bincount bitwise_and
bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor block_diag bmm broadcast_tensors
broadcast_to bucketize cartesian_prod cat cdist ceil celu chain_matmul channel_shuffle chunk clamp clamp_max clamp_min
clip clone column_stack combinations complex concat concatenate conj constant_pad_nd conv1d conv2d conv3d
conv_transpose1d conv_transpose2d conv_transpose3d copysign corrcoef cos cosh cosine_similarity count_nonzero cov
cross cummax cummin cumprod cumsum deg2rad det detach diag diag_embed diagflat diagonal diagonal_scatter diff digamma
dist div divide dot dropout dsplit dstack einsum embedding empty empty_like eq equal erf erfc erfinv exp exp2 expm1
eye fix flatten flip fliplr flipud float_power floor floor_divide fmax fmin fmod frac full full_like gather gcd ge
greater greater_equal group_norm gt hardshrink heaviside histc hsplit hstack hypot i0 imag index_add index_copy
index_fill index_put index_reduce index_select inner instance_norm inverse is_complex is_floating_point isclose
isfinite isin isinf isnan isneginf isposinf isreal istft kron kthvalue layer_norm lcm ldexp le lerp less less_equal
lgamma linspace log log10 log1p log2 log_softmax logaddexp logaddexp2 logcumsumexp logdet logical_and logical_not
logical_or logical_xor logit logspace logsumexp lt masked_fill masked_scatter masked_select matmul matrix_exp
matrix_power max max_pool1d max_pool2d max_pool3d maximum mean median meshgrid min minimum mm mode moveaxis movedim
msort mul multinomial multiply mv nan_to_num nanmean nanmedian nanquantile nansum narrow ne neg negative nextafter
nonzero norm normal not_equal numel ones ones_like outer pairwise_distance permute pinverse pixel_shuffle
pixel_unshuffle poisson polar positive pow prelu prod quantile rad2deg rand rand_like randint randint_like randn
randn_like randperm ravel real reciprocal relu remainder renorm repeat_interleave reshape rms_norm roll rot90 round
row_stack rrelu rsqrt rsub scalar_tensor scatter scatter_add scatter_reduce searchsorted select select_scatter selu
sgn sigmoid sign signbit sin sinc sinh slice_scatter slogdet softmax sort split split_with_sizes sqrt square squeeze
stack std std_mean stft sub subtract sum swapaxes swapdims t take take_along_dim tan tanh tensor tensor_split
tensordot threshold tile topk trace transpose trapezoid tril tril_indices triu triu_indices true_divide trunc unbind
unflatten unique unique_consecutive unravel_index unsqueeze vander var var_mean vdot view_as_complex view_as_real
vsplit vstack where xlogy zeros zeros_like _grouped_mm
"""

_FUNCTIONAL = """
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear
binary_cross_entropy binary_cross_entropy_with_logits celu channel_shuffle conv1d conv2d conv3d conv_transpose1d
conv_transpose2d conv_transpose3d cosine_embedding_loss cosine_similarity cross_entropy ctc_loss dropout dropout1d
dropout2d dropout3d elu elu_ embedding embedding_bag feature_alpha_dropout fold fractional_max_pool2d
fractional_max_pool3d gaussian_nll_loss gelu glu grid_sample group_norm gumbel_softmax hardshrink hardsigmoid
hardswish hardtanh hardtanh_ hinge_embedding_loss huber_loss instance_norm interpolate kl_div l1_loss layer_norm
leaky_relu leaky_relu_ linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d
margin_ranking_loss max_pool1d max_pool2d max_pool3d max_unpool1d max_unpool2d max_unpool3d mish mse_loss
multi_head_attention_forward multi_margin_loss multilabel_margin_loss multilabel_soft_margin_loss nll_loss normalize
one_hot pad pairwise_distance pdist pixel_shuffle pixel_unshuffle poisson_nll_loss prelu relu relu6 relu_ rms_norm
rrelu rrelu_ scaled_dot_product_attention selu selu_ sigmoid silu smooth_l1_loss soft_margin_loss softmax softmin
softplus softshrink softsign tanh tanhshrink threshold threshold_ triplet_margin_loss unfold upsample
"""

_TENSOR = """
__abs__ __add__ __and__ __eq__ __floordiv__ __ge__ __getitem__ __gt__ __iadd__ __iand__ __ifloordiv__ __imod__
__imul__ __invert__ __ior__ __isub__ __itruediv__ __ixor__ __le__ __lt__ __matmul__ __mod__ __mul__ __ne__ __neg__
__or__ __pow__ __radd__ __rand__ __rdiv__ __rfloordiv__ __rmatmul__ __rmod__ __rmul__ __ror__ __rpow__ __rsub__
__rtruediv__ __rxor__ __setitem__ __sub__ __truediv__ __xor__ abs abs_ absolute acos acos_ acosh add add_ addbmm
addcdiv addcdiv_ addcmul addcmul_ addmm addmv addr adjoint all amax amin aminmax angle any arccos arcsin arctan
arctan2 argmax argmin argsort argwhere asin asinh atan atan2 atanh baddbmm bernoulli bernoulli_ bfloat16 bincount
bitwise_and bitwise_not bitwise_or bitwise_xor bmm bool broadcast_to byte ceil ceil_ chunk clamp clamp_ clamp_max
clamp_max_ clamp_min clamp_min_ clip clip_ clone conj contiguous copy_ copysign corrcoef cos cos_ cosh count_nonzero
cov cpu cross cuda cummax cummin cumprod cumsum deg2rad det detach detach_ diag diag_embed diagflat diagonal
diagonal_scatter diff digamma dist div div_ divide dot double dsplit eq equal erf erfc erfinv exp exp2 exp_ expand
expand_as expm1 exponential_ fill_ fill_diagonal_ fix flatten flip fliplr flipud float float_power floor floor_
floor_divide fmax fmin fmod frac gather gcd ge greater greater_equal gt half hardshrink heaviside histc hsplit hypot
i0 index_add index_add_ index_copy index_copy_ index_fill index_fill_ index_put index_put_ index_reduce index_select
inner int inverse is_complex is_floating_point isclose isfinite isinf isnan isneginf isposinf isreal istft item kron
kthvalue lcm ldexp le lerp lerp_ less less_equal lgamma log log10 log1p log2 log_ log_softmax logaddexp logaddexp2
logcumsumexp logdet logical_and logical_not logical_or logical_xor logit logsumexp long lt masked_fill masked_fill_
masked_scatter masked_scatter_ masked_select matmul matrix_exp matrix_power max maximum mean median min minimum mm
mode moveaxis movedim msort mul mul_ multinomial multiply mv nan_to_num nan_to_num_ nanmean nanmedian nanquantile
nansum narrow ne neg neg_ negative new_empty new_full new_ones new_tensor new_zeros nonzero norm normal_ not_equal
outer permute pinverse positive pow pow_ prelu prod put quantile rad2deg random_ ravel reciprocal reciprocal_ relu
relu_ remainder renorm repeat repeat_interleave reshape reshape_as roll rot90 round round_ rsqrt rsqrt_ scatter
scatter_ scatter_add scatter_add_ scatter_reduce scatter_reduce_ select select_scatter sgn short sigmoid sigmoid_ sign
signbit sin sin_ sinc sinh slice_scatter slogdet softmax sort split split_with_sizes sqrt sqrt_ square square_ squeeze
squeeze_ std stft sub sub_ subtract sum sum_to_size swapaxes swapdims t take take_along_dim tan tanh tanh_
tensor_split tile to topk trace transpose transpose_ tril tril_ triu triu_ true_divide trunc type_as unbind unflatten
unfold uniform_ unique unique_consecutive unsqueeze unsqueeze_ var vdot view view_as vsplit where xlogy zero_
"""

_LINALG = """
cholesky cross det diagonal eig eigh eigvals eigvalsh inv lstsq lu lu_factor lu_solve matmul matrix_exp matrix_norm
matrix_power matrix_rank multi_dot norm pinv qr slogdet solve solve_triangular svd svdvals vander vecdot vector_norm
"""

_FFT = """
fft fft2 fftfreq fftn fftshift hfft hfft2 hfftn ifft ifft2 ifftn ifftshift ihfft irfft irfft2 irfftn rfft rfft2 rfftfreq
rfftn
"""

_SPECIAL = """
digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammainc gammaincc gammaln i0 i0e i1 i1e log1p log_ndtr log_softmax
logit logsumexp multigammaln ndtr ndtri polygamma psi round sinc softmax xlog1py xlogy zeta
"""

# Read-only tensor attributes whose value is a tensor.
_PROPERTIES = "T mT H mH real imag data"

_NAMESPACES: tuple[tuple[str, Any, str], ...] = (
    ("torch", torch, _TORCH),
    ("torch.nn.functional", torch.nn.functional, _FUNCTIONAL),
    ("torch.Tensor", torch.Tensor, _TENSOR),
    ("torch.linalg", torch.linalg, _LINALG),
    ("torch.fft", torch.fft, _FFT),
    ("torch.special", torch.special, _SPECIAL),
)


def einsum(equation: Any, *operands: Any, path: Sequence[int] = ()) -> torch.Tensor:
    """Contract tensors as ``torch.einsum`` does, always in the same order.

    Args:
        equation: ``"bij,bjk->bik"``.
        operands: The tensors.
        path: For three and more operands, the positions of the two operands of each contraction; by default from left
            to right, with or without the package opt_einsum.

    Example:
        >>> einsum("ij,j->i", torch.eye(2), torch.ones(2))
        tensor([1., 1.])
    """
    tensors = operands[0] if len(operands) == 1 and isinstance(operands[0], (list, tuple)) else operands
    # Two operands have a single order. Without an equation, operands alternate with lists of axes. A compiler chooses
    # orders itself.
    if len(tensors) <= 2 or not isinstance(equation, str) or torch.compiler.is_compiling():
        return torch.einsum(equation, *tensors)
    result: torch.Tensor = torch_private.einsum(equation, list(tensors), path=list(path) or None)
    return result


def _identity(value: Any) -> Any:
    return value


def _set_autocast_enabled(enabled: bool) -> None:
    for kind in AUTOCAST_KINDS:
        torch.set_autocast_enabled(kind, enabled)


def _require_grad(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.requires_grad:
        return tensor
    return tensor.detach().requires_grad_()  # not in place: the tensor may be a module's


AUTOCAST_KINDS = ("cpu", "cuda")
"""Kinds of devices with an autocast mode."""

EINSUM = "torch.einsum"
"""Name of :func:`einsum`, which replaces ``torch.einsum``."""

REQUIRE_GRAD = "require_grad"
"""Op that returns a tensor with gradients, in the place of ``tensor.requires_grad = True``; parameters stay frozen."""

SET_GRAD_ENABLED = "set_grad_enabled"
"""Op at the start and at the end of a ``torch.no_grad()`` or ``torch.enable_grad()`` region.

Without an argument, the op restores the mode of the program's caller.
"""

SET_AUTOCAST_ENABLED = "set_autocast_enabled"
"""Op at the start and at the end of a ``torch.autocast(..., enabled=False)`` region, on all kinds of devices."""


def _table() -> dict[str, Op]:
    table: dict[str, Op] = {
        "add": operator.add,
        "mul": operator.mul,
        "getitem": operator.getitem,
        "cat": torch.cat,
        "stack": torch.stack,
        "identity": _identity,
        EINSUM: einsum,
        REQUIRE_GRAD: _require_grad,
        SET_GRAD_ENABLED: torch_private.set_grad_enabled,
        SET_AUTOCAST_ENABLED: _set_autocast_enabled,
    }
    for prefix, namespace, names in _NAMESPACES:
        found = {f"{prefix}.{name}": getattr(namespace, name) for name in names.split() if hasattr(namespace, name)}
        table |= {name: op for name, op in found.items() if name not in table}
    for name in _PROPERTIES.split():
        table[f"torch.Tensor.{name}"] = getattr(torch.Tensor, name).__get__
    return table


OPS: Mapping[str, Op] = MappingProxyType(_table())
"""Canonical name -> callable."""


def resolve_op(name: str, others: Iterable[str] = ()) -> str:
    """Return the canonical name of an op.

    Args:
        name: Name in a config.
        others: More names for the suggestion in the error.

    Raises:
        ConfigError: the name is not in the table; the message suggests the closest name.

    Example:
        >>> resolve_op("softmax")
        'torch.softmax'
        >>> resolve_op("gelu")
        'torch.nn.functional.gelu'
    """
    canonical = _canonical(name)
    if canonical is None:
        known = OPS if "." in name else {short_op(item): None for item in OPS}
        raise ConfigError(f"Unknown op {quoted(name)}{nearest(name, [*others, *known])}")
    return canonical


def short_op(canonical: str) -> str:
    """Return the shortest name for an op in a config.

    Example:
        >>> short_op("torch.nn.functional.gelu"), short_op("torch.Tensor.relu")
        ('gelu', 'torch.Tensor.relu')
    """
    short = canonical.rpartition(".")[2]
    return short if _canonical(short) == canonical else canonical


def _canonical(name: str) -> str | None:
    candidates = (name, *(f"{prefix}.{name}" for prefix, _, _ in _NAMESPACES))
    return next((candidate for candidate in candidates if candidate in OPS), None)
