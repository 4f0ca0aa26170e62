"""Messages of responses."""

from __future__ import annotations

from model_factory.v1 import build_pb2
from model_factory_server.rpc.response import progress
from model_factory_server.worker.stages import Stage


def test_every_stage_has_its_own_message() -> None:
    sent = {stage: progress("m", stage, 1.5).progress for stage in Stage}
    assert {build_pb2.BuildStage.Name(message.stage) for message in sent.values()} == set(
        build_pb2.BuildStage.DESCRIPTOR.values_by_name
    ) - {"BUILD_STAGE_UNSPECIFIED"}
    for stage, message in sent.items():
        assert build_pb2.BuildStage.Name(message.stage) == f"BUILD_STAGE_{stage.name}"
        assert (message.component, message.elapsed_ms) == ("m", 1500)
