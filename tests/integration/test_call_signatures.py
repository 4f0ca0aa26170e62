"""Ways of calling a component: each is a form of its own, and none is ever run with another's program."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model_factory import CallSignatureError, GraphExecutionError, RemoteModelFactory
from model_factory_server import PolicyConstructorModelFactory
from support.cases import CASES, CONFIGS, Case
from support.compare import assert_same, assert_same_runs, map_tensors
from support.server import ServerProcess

MakePair = Callable[[Case | str], tuple[nn.Module, nn.Module]]
TESTS = Path(__file__).parents[1]

GRAPH = {"inputs": ["x"], "steps": [{"call": "module:block", "args": ["$x"], "out": "y"}], "outputs": ["y"]}


def one_block(**spec: Any) -> dict[str, Any]:
    return {"schema_version": 1, "model": {"graph": GRAPH | {"modules": {"block": spec}}}}


def raised(call: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011  compared with what the other raises
        call()
    return caught.value


@pytest.mark.parametrize("name", ["info_embedder", "multimodal_bridge"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_semantics_given_and_none(name: str, training: bool, make_pair: MakePair) -> None:
    remote, local = (model.train(training) for model in make_pair(name))
    inputs = CASES[name].inputs(3, 4)
    for semantic in (inputs["cond_semantic"], None):
        assert_same_runs(remote, local, inputs | {"cond_semantic": semantic})


def test_decoder_semantics_of_both_ranks_and_none(make_pair: MakePair, tmp_path: Path) -> None:
    config = tmp_path / "decoder.yaml"
    config.write_text(
        f"defaults: [{CONFIGS / 'small' / 'action_decoder.yaml'}]\n"
        "model: {graph: {modules: {decoder: {use_cond_semantic: true, cond_semantic_dim: 9}}}}\n",
        encoding="utf-8",
    )
    case = Case(name="action_decoder", make_inputs=CASES["action_decoder"].make_inputs)
    remote, local = make_pair(_At(case, config))
    for semantic in (torch.randn(2, 9), torch.randn(2, 3, 9), torch.randn(2, 1, 9), None):
        assert_same_runs(remote, local, case.inputs(2, 4) | {"discrete_semantic_input": semantic})


class _At:
    """A case at another path."""

    def __init__(self, case: Case, config: Path) -> None:
        self.name, self.config = case.name, config


@pytest.mark.parametrize("visual_rank", [4, 5, 6])
def test_visuals_of_each_rank(visual_rank: int, make_pair: MakePair) -> None:
    remote, local = make_pair("vae_prior")
    shape = {4: (2, 2, 16, 3), 5: (2, 2, 16, 3, 5), 6: (2, 2, 2, 16, 3, 2)}[visual_rank]
    inputs = CASES["vae_prior"].inputs(2, 3) | {"cond_visual": torch.randn(shape)}
    assert_same_runs(remote, local, inputs)


@pytest.mark.parametrize("name", CASES)
def test_positional_and_by_name_in_any_mix(name: str, make_pair: MakePair) -> None:
    remote, local = (model.eval() for model in make_pair(name))
    inputs = CASES[name].inputs(2, 3)
    expected = local(**inputs)
    values = list(inputs.items())
    for given in range(len(values) + 1):
        args = [value for _, value in values[:given]]
        assert_same(remote(*args, **dict(values[given:])), expected, f"{given} positional")
    assert_same(remote(**dict(reversed(values))), expected, "names in another order")


def test_a_block_called_alone_positionally_and_by_name(make_pair: MakePair) -> None:
    remote, local = (model.eval().graph_modules["embedder"] for model in make_pair("info_embedder"))
    inputs = CASES["info_embedder"].inputs(2, 3)
    expected = local(**inputs)
    assert_same(remote(*inputs.values()), expected)
    assert_same(remote(**inputs), expected)
    inputs.pop("action")
    assert_same(remote(**inputs), local(**inputs))  # its default


def test_visuals_as_a_tuple(make_pair: MakePair) -> None:
    remote, local = make_pair("info_embedder")
    inputs = CASES["info_embedder"].inputs(2, 3)
    inputs["cond_visual"] = tuple(inputs["cond_visual"])
    assert_same_runs(remote, local, inputs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    "change",
    ["too many", "too few", "unknown", "twice", "None", "text", "a number", "wrong features", "wrong rank"],
)
def test_wrong_calls_fail_where_the_original_fails(name: str, change: str, make_pair: MakePair) -> None:
    remote, local = make_pair(name)
    inputs = CASES[name].inputs(2, 3)
    first = next(iter(inputs))
    args: list[Any] = []
    if change == "too many":
        args, inputs = [*inputs.values(), None], {}
    elif change == "too few":
        inputs.pop(first)
    elif change == "unknown":
        inputs["actoin"] = None
    elif change == "twice":
        args = [inputs[first]]
    elif change == "wrong features":
        inputs = map_tensors(inputs, lambda leaf: torch.cat([leaf, leaf], dim=1 if name == "conv_graph" else -1))
    elif change == "wrong rank":
        inputs = map_tensors(inputs, lambda leaf: leaf.flatten() if leaf.dim() > 1 else leaf[None, None, None])
    else:
        inputs[first] = {"None": None, "text": "x", "a number": 3}[change]
    ours, theirs = raised(lambda: remote(*args, **inputs)), raised(lambda: local(*args, **inputs))
    if change in {"too many", "too few", "unknown", "twice"}:
        assert type(ours) is type(theirs) is GraphExecutionError
        assert str(ours) == str(theirs)
    else:
        assert_fails_alike(ours, theirs)


def assert_fails_alike(ours: Exception, theirs: Exception) -> None:
    """Check that a remote model's error is one that ``except`` catches as the original's."""
    assert isinstance(ours, type(theirs)), f"{ours!r} where the original raises {theirs!r}"
    assert type(ours) is type(theirs) or isinstance(ours, CallSignatureError), repr(ours)
    for error in (ours, theirs):
        said = [str(error), *getattr(error, "__notes__", ())]
        assert any(re.search(r"\bstep \d+ \((module|op):", text) for text in said), f"{said} names no step"


def test_a_refused_call_is_told_with_its_own_sizes(make_pair: MakePair) -> None:
    """Not with the symbols that stand for them while it is recorded."""
    remote, local = make_pair("action_decoder")
    inputs = CASES["action_decoder"].inputs(2, 3)
    inputs["memory_input"] = torch.zeros(2, 3, 7)
    ours, theirs = (str(raised(lambda model=model: model(**inputs))) for model in (remote, local))
    assert "memory_input is 7 wide" in ours
    assert "memory_input is 7 wide" in theirs


def test_a_call_that_only_real_sizes_refuse_is_a_refused_call(make_remote: Callable[..., RemoteModelFactory]) -> None:
    """What the recorder's symbols let pass; it is not that the block could not be handed out."""
    sizes = {"transformer_d_model": 8, "transformer_nhead": 2, "transformer_dim_feedforward": 8}
    config = one_block(
        _type_="vfp_single_action_decoder",
        **sizes,
        action_dim=3,
        transformer_dropout=0.0,
        transformer_activation="gelu",
        transformer_batch_first=False,
        transformer_tgt_is_causal=False,
        transformer_num_layers=1,
        transformer_action_chunk_size=5,
    )
    graph = config["model"]["graph"]
    graph["inputs"] = ["time", "noise", "memory"]
    graph["steps"] = [{"call": "module:block", "args": ["$time", "$noise", "$memory"], "out": "y"}]
    errors = []
    for factory in (make_remote(), PolicyConstructorModelFactory(seed=7)):
        model = factory.build({"config": config})
        errors.append(raised(lambda model=model: model(torch.rand(5), torch.zeros(5, 3, 3), torch.zeros(5, 4, 8))))
        assert "is invalid for input of size" in str(errors[-1])
    assert_fails_alike(*errors)


# Blocks of the library that decide something by sizes, or bind one size to another.
GUARDED: dict[str, tuple[dict[str, Any], list[tuple[int, ...]], list[tuple[int, ...]]]] = {
    "a_encoder": (
        {"_type_": "a_encoder", "embedding_dim": 3, "hidden_dim": 8, "action_dim": 4, "action_chunk": 6},
        [(2, 6, 4), (2, 24), (1, 24), (5, 4, 6)],
        [(2, 5, 4), (2, 23)],
    ),
    "residual_block": (
        {"_type_": "residual_block", "in_channels": 3, "out_channels": 5, "stride": 2},
        [(1, 3, 2, 2), (3, 3, 7, 5), (2, 3, 8, 1)],
        [(2, 4, 7, 7)],
    ),
    "nn.Flatten": ({"_type_": "nn.Flatten"}, [(1, 1), (2, 3, 4), (1, 2, 3, 4)], []),
    "nn.PixelShuffle": (
        {"_type_": "nn.PixelShuffle", "upscale_factor": 2},
        [(1, 4, 1, 1), (3, 8, 2, 5)],
        [(1, 3, 2, 2)],
    ),
}


@pytest.mark.parametrize("block", GUARDED)
def test_sizes_are_never_run_wrong(block: str, make_remote: Callable[..., RemoteModelFactory]) -> None:
    spec, allowed, refused = GUARDED[block]
    remote = make_remote().build({"config": one_block(**spec)}).eval()
    local = PolicyConstructorModelFactory(seed=7).build({"config": one_block(**spec)}).eval()
    for shape in allowed:
        x = torch.randn(shape)
        assert_same(remote(x), local(x), str(shape))
    for shape in refused:
        x = torch.randn(shape)
        assert_fails_alike(raised(lambda x=x: remote(x)), raised(lambda x=x: local(x)))


LAZY = one_block(_type_="mlp", dims=[None, 6, 2])


def test_lazy_parameters_take_their_shape_from_the_first_call(make_remote: Callable[..., RemoteModelFactory]) -> None:
    """With permission: the sizes of a model with lazy layers can follow from values (docs/security.md)."""
    remote = make_remote(share_values=True).build({"config": LAZY})
    local = PolicyConstructorModelFactory(seed=7).build({"config": LAZY})
    assert [name for name, _ in remote.named_parameters()] == [name for name, _ in local.named_parameters()]
    assert all(isinstance(model.graph_modules["block"].net[0], nn.LazyLinear) for model in (remote, local))
    x = torch.randn(3, 5)
    for model in (remote, local):
        torch.manual_seed(2)
        model(x)
    assert type(remote.graph_modules["block"].net[0]) is nn.Linear
    assert_same(dict(remote.state_dict()), dict(local.state_dict()))
    assert_same_runs(remote, local, {"x": x})


def new_form(batch: int, seq: int) -> dict[str, Any]:
    inputs = CASES["info_embedder"].inputs(batch, seq)
    return inputs | {"cond_visual": tuple(inputs["cond_visual"])}


@pytest.fixture
def gone(start_server: Callable[..., ServerProcess], tmp_path: Path) -> Callable[..., tuple[nn.Module, Any]]:
    """A model from a server that has been stopped since, after some calls of it."""

    def make(*calls: dict[str, Any]) -> tuple[nn.Module, RemoteModelFactory]:
        server = start_server()
        factory = RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "cache", timeout=20)
        model = factory.build({"info_embedder": CASES["info_embedder"].config})["info_embedder"]
        for call in calls:
            model(**call)
        assert server.stop() == 0
        return model, factory

    return make


def test_a_new_form_after_the_server_is_gone(gone: Callable[..., tuple[nn.Module, Any]]) -> None:
    model, _ = gone()
    model(**CASES["info_embedder"].inputs(2, 3))  # the block's own examples need no server
    with pytest.raises(
        CallSignatureError, match=r"no program exists for this call signature.*server.*cannot be reached.*Remedy"
    ):
        model(**new_form(2, 3))
    model(**CASES["info_embedder"].inputs(4, 1))


def test_a_form_used_before_works_without_the_server(gone: Callable[..., tuple[nn.Module, Any]]) -> None:
    model, _ = gone(new_form(2, 3))
    local = PolicyConstructorModelFactory(seed=7).build({"info_embedder": CASES["info_embedder"].config})
    twin = pickle.loads(pickle.dumps(model))  # noqa: S301  our own bytes
    for item in (model, twin):
        for batch, seq in ((2, 3), (5, 1)):
            assert_same_runs(item.eval(), local["info_embedder"].eval(), new_form(batch, seq))
            assert_same_runs(item.train(), local["info_embedder"].train(), new_form(batch, seq))


@pytest.mark.slow
def test_a_form_used_before_by_another_process_works_at_other_sizes_without_the_server(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """Two trainers of a node, one after the other; the cache is what they share."""
    server = start_server()
    model_pickle, script = tmp_path / "model.pickle", tmp_path / "use.py"
    script.write_text(
        "import pickle, sys, pathlib\n"
        f"sys.path.insert(0, {str(TESTS)!r})\n"
        "from test_call_signatures_inputs import call\n"
        "model = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "call(model, int(sys.argv[2]), int(sys.argv[3]))\n",
        encoding="utf-8",
    )
    (tmp_path / "test_call_signatures_inputs.py").write_text(
        "from support.cases import CASES\n"
        "def call(model, batch, seq):\n"
        "    inputs = CASES['info_embedder'].inputs(batch, seq)\n"
        "    model(**inputs | {'cond_visual': tuple(inputs['cond_visual'])})\n",
        encoding="utf-8",
    )
    factory = RemoteModelFactory(server.address, seed=7, cache_dir=tmp_path / "cache")
    model = factory.build({"info_embedder": CASES["info_embedder"].config})["info_embedder"]
    model_pickle.write_bytes(pickle.dumps(model))

    def use(batch: int, seq: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, script, model_pickle, str(batch), str(seq)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    first = use(2, 3)
    assert first.returncode == 0, first.stderr
    assert server.stop() == 0
    second = use(5, 7)
    assert second.returncode == 0, second.stderr
    local = PolicyConstructorModelFactory(seed=7).build({"info_embedder": CASES["info_embedder"].config})
    assert_same_runs(model.eval(), local["info_embedder"].eval(), new_form(1, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_new_form_after_a_change_of_dtype(dtype: torch.dtype, make_pair: MakePair) -> None:
    remote, local = (model.to(dtype) for model in make_pair("multimodal_bridge"))
    inputs = map_tensors(CASES["multimodal_bridge"].inputs(2, 3), lambda leaf: leaf.to(dtype))
    inputs["cond_semantic"] = tuple(inputs["cond_semantic"])
    assert_same_runs(remote, local, inputs)


def test_a_new_form_under_autocast_with_cast_inputs(make_pair: MakePair) -> None:
    remote, local = make_pair("multimodal_bridge")
    inputs = map_tensors(CASES["multimodal_bridge"].inputs(2, 3), torch.Tensor.bfloat16)
    inputs["cond_proprio"] = inputs["cond_proprio"].float()
    inputs["cond_visual"] = tuple(inputs["cond_visual"])
    inputs["cond_semantic"] = tuple(inputs["cond_semantic"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_runs(remote, local, inputs)
