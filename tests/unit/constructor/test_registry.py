"""The registry: what can be named, how it is looked up and described."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from model_factory.errors import ConfigError
from model_factory_server.constructor import Registry, default_registry
from model_factory_server.constructor.factory import Factory
from model_factory_server.constructor.registry import register_stock


def half(width: int, scale: float = 0.5, *rest: int, name: str, **more: Any) -> None:
    """Halve a width.

    In words.
    """


@pytest.fixture
def registry() -> Registry:
    registry = Registry()
    register_stock(registry)
    return registry


def test_every_module_class_of_torch_nn_is_registered(registry: Registry) -> None:
    classes = {name for name, value in vars(nn).items() if isinstance(value, type) and issubclass(value, nn.Module)}
    registered = {entry.name.removeprefix("nn.") for entry in registry.blocks()}
    # DataParallel wraps a model for several GPUs of one process; it is no part of a model.
    assert classes - registered == {"Module", "Container", "DataParallel"}
    assert registry.module("nn.Linear").call is nn.Linear


def test_unknown_module_type_suggests_the_closest(registry: Registry) -> None:
    with pytest.raises(ConfigError, match=r"model\.x: Unknown module type 'nn.Liner'; did you mean 'nn.Linear'\?"):
        registry.module("nn.Liner", ("model", "x"))
    with pytest.raises(ConfigError, match=r"Unknown module type 'Conv2d'; did you mean 'nn.Conv2d'\?"):
        registry.module("Conv2d")
    with pytest.raises(ConfigError, match=r"Unknown module type 'zzzzzzzzzz'$"):
        registry.module("zzzzzzzzzz")


def test_duplicate_registration_is_an_error(registry: Registry) -> None:
    with pytest.raises(ValueError, match=r"'nn.Linear' is registered already, as torch.nn.modules.linear.Linear"):
        registry.register_module("nn.Linear", nn.Linear)
    registry.register_op("twice", half)
    with pytest.raises(ValueError, match="op 'twice' is registered already"):
        registry.register_op("twice", half)


def test_registries_are_separate() -> None:
    one, other = Registry(), Registry()
    one.register_module("x", nn.Linear)
    with pytest.raises(ConfigError):
        other.module("x")


def test_registration_refuses_what_cannot_be_called() -> None:
    with pytest.raises(ValueError, match="must be registered with a callable"):
        Registry().register_module("x", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="signature_policy is one of strict, best_effort, runtime_only, got 'lax'"):
        Registry().register_module("x", nn.Linear, signature_policy="lax")  # type: ignore[arg-type]


def test_strict_needs_a_readable_signature() -> None:
    registry = Registry()
    with pytest.raises(ValueError, match="the signature of 'x' cannot be read; register it with 'best_effort'"):
        registry.register_module("x", max)
    registry.register_module("x", max, signature_policy="best_effort")
    assert registry.blocks()[0].arguments == ()


def check(factory: Factory, *args: Any, **kwargs: Any) -> None:
    factory.check_arguments(args, {name: ("spec", name) for name in kwargs}, ("spec",))


@pytest.mark.parametrize("policy", ["strict", "best_effort"])
def test_arguments_are_checked_before_the_call(policy: Any) -> None:
    factory = Factory(name="nn.Linear", call=nn.Linear, signature_policy=policy)
    check(factory, 3, out_features=4)
    with pytest.raises(
        ConfigError, match=r"^spec\.bia: Unknown kwargs for 'nn.Linear': 'bia', 'z'; did you mean 'bias'"
    ):
        check(factory, bia=3, z=4)
    with pytest.raises(ConfigError, match=r"^spec: 'nn.Linear': missing a required argument: 'out_features'"):
        check(factory, in_features=3)
    with pytest.raises(ConfigError, match=r"^spec: 'nn.Linear': too many positional arguments"):
        check(factory, 1, 2, 3, 4, 5, 6)
    with pytest.raises(ConfigError, match=r"^spec: 'nn.Linear': multiple values for argument 'in_features'"):
        check(factory, 3, in_features=3)


def test_runtime_only_leaves_arguments_to_the_call() -> None:
    check(Factory(name="x", call=nn.Linear, signature_policy="runtime_only"), zzz=4)


def test_best_effort_checks_nothing_where_it_cannot() -> None:
    check(Factory(name="x", call=max, signature_policy="best_effort"), zzz=4)


def test_factories_that_take_any_keyword_get_any() -> None:
    check(Factory(name="x", call=half), 1, name="a", zzz=4)


def test_plugin_ops_are_kept_and_the_closed_table_answers_the_rest(registry: Registry) -> None:
    registry.register_op("halve", half)
    plugin = registry.plugin_op("halve")
    assert plugin is not None
    assert plugin.call is half
    assert registry.plugin_op("cat") is None
    assert registry.resolve_op("relu") == "torch.relu"


def test_unknown_op_suggests_the_closest(registry: Registry) -> None:
    registry.register_op("frobnicate", half)
    with pytest.raises(ConfigError, match=r"^steps\[0\]: Unknown op 'frobnicat'; did you mean 'frobnicate'\?"):
        registry.resolve_op("frobnicat", ("steps", 0))
    with pytest.raises(ConfigError, match=r"^steps\[0\]: Unknown op 'softmaxx'; did you mean 'softmax'\?"):
        registry.resolve_op("softmaxx", ("steps", 0))
    registry.register_op("relu_sq", half)
    for name in ("rellu", "re lu"):
        with pytest.raises(ConfigError, match=rf"^Unknown op '{name}'; did you mean 'relu'\?"):
            registry.resolve_op(name)


def test_an_ops_name_has_no_colon(registry: Registry) -> None:
    registry.register_op("my-op", half)
    with pytest.raises(ValueError, match="has no colon, got 'a:b'"):
        registry.register_op("a:b", half)


def test_blocks_are_described_with_arguments_docs_tags_and_origin() -> None:
    registry = Registry()
    registry.register_from("here", lambda target: target.register_op("halve", half, tags=("mine",)))
    registry.register_module("a", nn.Linear)
    first, second = registry.blocks()
    assert (first.name, first.origin) == ("a", "")
    assert (second.name, second.origin, second.summary, second.tags) == (
        "op:halve",
        "here",
        "Halve a width.",
        ("mine",),
    )
    described = [(item.name, item.default, item.required, item.annotation) for item in second.arguments]
    assert described == [
        ("width", "", True, "int"),
        ("scale", "0.5", False, "float"),
        ("*rest", "", False, "int"),
        ("name", "", True, "str"),
        ("**more", "", False, "Any"),
    ]


def test_blocks_are_listed_with_the_names_that_configs_use() -> None:
    entries = {entry.name: entry for entry in default_registry().blocks()}
    decoder = entries["vfp_single_action_decoder"]
    assert decoder.tags == ("block",)
    assert [item.name for item in decoder.arguments] == [
        "action_dim",
        "transformer_d_model",
        "transformer_nhead",
        "transformer_dim_feedforward",
        "transformer_dropout",
        "transformer_activation",
        "transformer_batch_first",
        "transformer_tgt_is_causal",
        "transformer_num_layers",
        "transformer_action_chunk_size",
        "use_cond_semantic",
        "cond_semantic_dim",
        "**ignored",
    ]


def test_blocks_say_who_registered_them(registry: Registry) -> None:
    registry.register_from("my_plugin", lambda target: target.register_module("mine", nn.Linear))
    registry.register_module("ours", nn.Linear)
    origins = {entry.name: entry.origin for entry in registry.blocks()}
    assert (origins["mine"], origins["ours"]) == ("my_plugin", "")
    assert {entry.origin for entry in default_registry().blocks()} == {"torch", "builtin"}


@pytest.mark.parametrize(
    ("name", "keyword", "hint"),
    [
        ("stack", "dimension", "known: 'tensors', 'dim'"),
        ("cat", "dimm", "did you mean 'dim'"),
        ("torch.Tensor.view", "sizes", "did you mean 'size'"),
        ("torch.linalg.norm", "orde", "did you mean 'ord'"),
        ("gelu", "aproximate", "did you mean 'approximate'"),
    ],
)
def test_keywords_of_ops_written_in_c_are_known(name: str, keyword: str, hint: str) -> None:
    registry = default_registry()
    with pytest.raises(ConfigError, match=rf"^k: Unknown kwargs for 'op:{name}': '{keyword}'.*{hint}"):
        registry.resolve_op(name, (), {keyword: ("k",)})


@pytest.mark.parametrize(
    ("name", "keyword"),
    [("cat", "axis"), ("sum", "keepdims"), ("where", "input"), ("torch.Tensor.to", "dtype"), ("nonzero", "as_tuple")],
)
def test_what_torch_takes_besides_is_let_through(name: str, keyword: str) -> None:
    default_registry().resolve_op(name, (), {keyword: ("k",)})


@pytest.mark.parametrize(
    ("written", "suggestion"),
    [("bmmq", "bmm"), ("torch.linalg.invv", "torch.linalg.inv"), ("torch.Tensor.vieww", "torch.Tensor.view")],
)
def test_the_closest_op_is_suggested(written: str, suggestion: str) -> None:
    with pytest.raises(ConfigError, match=f"Unknown op '{written}'; did you mean '{suggestion}'"):
        default_registry().resolve_op(written)
