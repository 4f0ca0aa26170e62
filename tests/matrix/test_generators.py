"""Generators of random numbers among the arguments, as samplers of policies take them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from matrix.portability import rebuilt_with_programs
from model_factory import GraphExecutionError, NotPortableError
from model_factory.descriptor.codec import encode_programs
from model_factory.program.call_signature import call_signature
from model_factory.program.codec.programs import decode_program, encode_program
from model_factory.program.codec.signatures import decode_call_signature, encode_call_signature
from model_factory.program.ir import GeneratorOf, OpCall, Program, Ref
from model_factory.program.runtime.interpreter import Runner
from model_factory_server.export.exporter import record_model
from support.compare import assert_same
from support.recording import InProcessRecorder, ask
from support.schemas import check

WIDTH = 4


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Sampler(nn.Module):
    """Draws noise from the generator of its caller, or from torch's own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        kept = torch.rand(x.shape, generator=generator) < 0.5
        order = torch.randperm(x.shape[0], generator=generator)
        chosen = torch.multinomial(x.softmax(-1), 2, generator=generator)
        return (self.linear(x) + noise * kept)[order], chosen, x.new_zeros(3).normal_(generator=generator)  # type: ignore[return-value]

    def example_inputs(self) -> Any:
        return [{"x": torch.zeros(2, WIDTH), "generator": generator()}, {"x": torch.zeros(2, WIDTH)}]


class OfOptions(Sampler):
    """Takes the generator in a mapping, and passes the generator on."""

    def forward(self, x: Tensor, options: dict[str, Any]) -> Tensor:  # type: ignore[override]
        return super().forward(x, options["generator"]) if options["noisy"] else self.linear(x)

    def example_inputs(self) -> Any:
        return [{"x": torch.zeros(2, WIDTH), "options": {"noisy": True, "generator": generator()}}]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_a_program_draws_from_the_given_generator(training: bool) -> None:
    original = Sampler().train(training)
    rebuilt = rebuilt_with_programs(original).train(training)
    sources = generator(), generator()
    for size in (2, 5, 2):
        x = torch.randn(size, WIDTH)
        torch.manual_seed(size)
        expected, state = original(x, sources[0]), torch.random.get_rng_state()
        torch.manual_seed(size)
        assert_same(rebuilt(x, sources[1]), expected)
        assert torch.equal(sources[0].get_state(), sources[1].get_state())
        assert torch.equal(torch.random.get_rng_state(), state), "torch's own generator is left alone"
        for module in (rebuilt, original):
            torch.manual_seed(size)
            expected, x = (module(x), x) if module is rebuilt else (expected, x)
        torch.manual_seed(size)
        assert_same(original(x), expected)


def test_a_generator_may_lie_in_a_mapping() -> None:
    original = OfOptions()
    rebuilt = rebuilt_with_programs(original)
    check("programs", encode_programs(record_model(OfOptions())))
    x = torch.randn(3, WIDTH)
    results = [module(x, {"noisy": True, "generator": generator(9)}) for module in (rebuilt, original)]
    assert_same(*results)


def test_a_trainers_call_with_a_generator_is_recorded() -> None:
    class Silent(Sampler):
        example_inputs = None

    original = Silent()
    rebuilt = rebuilt_with_programs(original)
    recorder = InProcessRecorder(Silent)
    ask(rebuilt, recorder)
    for seed in (1, 2):
        x = torch.randn(2 + seed, WIDTH)
        assert_same(rebuilt(x, generator(seed)), original(x, generator(seed)))
    assert recorder.calls == 1


class Reseeds(Sampler):
    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        assert generator is not None
        generator.manual_seed(0)
        return self.linear(x) + torch.randn(x.shape, generator=generator)

    def example_inputs(self) -> Any:
        return [{"x": torch.zeros(2, WIDTH), "generator": generator()}]


class OfItself(Sampler):
    def __init__(self) -> None:
        super().__init__()
        self.source = generator()

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.linear(x) + torch.randn(x.shape, generator=self.source)

    def example_inputs(self) -> Any:
        return [{"x": torch.zeros(2, WIDTH)}]


@pytest.mark.parametrize("block", [Reseeds, OfItself])
def test_a_generator_that_is_no_argument_is_refused(block: type[nn.Module]) -> None:
    with pytest.raises(NotPortableError):
        rebuilt_with_programs(block())


def test_documents_have_generators() -> None:
    signature, tensors = call_signature({"x": torch.ones(2), "noise": [generator()]})
    assert len(tensors) == 1
    assert decode_call_signature(encode_call_signature(signature)) == signature
    step = OpCall(name="torch.randn", args=(2,), kwargs={"generator": GeneratorOf("noise.0")}, out="y")
    program = decode_program(encode_program(Program(inputs=(), steps=(step,), result=Ref("y"))))
    assert program.steps == (step,)
    with pytest.raises(GraphExecutionError, match=r"the generator 'noise\.0', which is no argument"):
        Runner(program).run(nn.Identity(), [])
