"""Blocks whose originals do not run: the error names the block, the place in the file, and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model_factory import RemoteModelFactory
from model_factory.errors import ConfigError
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.constructor.blocks.parts.refused_blocks import REFUSED_BLOCKS
from support.server import ServerProcess

ARGUMENTS = {
    "naive_hand_extractor": "img_h: 96, img_w: 96, img_resize: true, self_extracted_dim: 512, output_dim: 64",
    "state_decoder": "out_channels: 3, num_images: 3, hidden_dim: 64",
    "state_encoder": "num_images: 3, img_embedding_dim: 24",
    "vfp_hand_extractor": "img_h: 96, img_w: 96, img_resize: true, self_extracted_dim: 512, output_dim: 64",
}
CONFIG = """\
schema_version: 1
model:
  graph:
    inputs: [image]
    modules:
      scale: {{_type_: nn.Identity}}
      hand:
        _type_: {name}
        _kwargs_: {{{arguments}}}
    nodes:
      - {{name: scaled, call: "module:scale", args: [$image]}}
      - {{name: features, call: "module:hand", args: [$scaled]}}
    outputs: [$features]
"""


@pytest.mark.parametrize("name", REFUSED_BLOCKS)
def test_the_error_has_block_place_and_remedy(
    name: str, tmp_path: Path, server: ServerProcess, make_remote: Callable[..., RemoteModelFactory]
) -> None:
    path = tmp_path / "hand.yaml"
    path.write_text(CONFIG.format(name=name, arguments=ARGUMENTS[name]))
    fault, remedy = REFUSED_BLOCKS[name]
    for factory in (make_remote(server.address), PolicyConstructorModelFactory()):
        for use in (factory.build, factory.describe):
            with pytest.raises(ConfigError) as caught:
                use({"config_path": path})
            text = str(caught.value)
            assert f"hand.yaml:8:9: model.graph.modules.hand: the block '{name}' cannot be built: {fault}" in text
            assert f"Remedy: {remedy}" in text


def test_a_wrong_name_is_still_an_unknown_type(
    server: ServerProcess, make_remote: Callable[..., RemoteModelFactory]
) -> None:
    layer = {"_type_": "state_recorder"}
    with pytest.raises(ConfigError, match="Unknown module type 'state_recorder'"):
        make_remote(server.address).build(
            {"config": {"schema_version": 1, "model": {"sequential": {"layers": [layer]}}}}
        )
