"""Every example of docs/config-language.md yields the result that the page shows, and the page has every keyword."""

import doctest
import importlib
import json
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from model_factory.config import bounds, resolve, resolve_file, schema
from model_factory.config.resolve.references import ConfigReference, split_references
from model_factory.config.schema.signature_examples import DTYPES
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.plain_data import to_plain
from model_factory.environment import WORDS
from model_factory.errors import ConfigError
from model_factory_server import PolicyConstructorModelFactory
from model_factory_server.settings.server_settings import BackendSettings

PAGE = Path(__file__).parents[3] / "docs" / "config-language.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"\n]*)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
FILE = re.compile(r"^# file: (\S+)\n", re.MULTILINE)
ENVIRONMENT = re.compile(r"# environment: (.*)\n")


@dataclass
class Example:
    """A config of the page with the results that the page shows for it."""

    text: str
    line: int
    results: list[tuple[str, str, str]] = field(default_factory=list)
    """Kind, title and text of each block after the config."""

    @property
    def env(self) -> dict[str, str]:
        match = ENVIRONMENT.match(self.text)
        return dict(item.split("=") for item in match[1].split()) if match else {}

    def write(self) -> str:
        """Write the files into the current folder; return the name of the config."""
        _, *files = FILE.split(self.text) if FILE.search(self.text) else ("", "config.yaml", self.text)
        for name, text in zip(files[::2], files[1::2], strict=True):
            Path(name).write_text(text)
        return files[-2]


def read_page() -> list[Example]:
    page = PAGE.read_text()
    examples: list[Example] = []
    for match in BLOCK.finditer(page):
        kind, title, text = match.groups()
        if kind == "yaml":
            examples.append(Example(text, page.count("\n", 0, match.start()) + 1))
        else:
            examples[-1].results.append((kind, title or "", text))
    return examples


EXAMPLES = read_page()


def value_at(tree: Cursor, path: str) -> Any:
    (reference,) = split_references(f"${{{path}}}")
    assert isinstance(reference, ConfigReference)
    found = tree.nearest(reference.path)
    assert found.path == reference.path, f"the config has no {path}"
    return to_plain(found.node)


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"line {example.line}" for example in EXAMPLES])
def test_an_example_yields_what_the_page_shows(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in example.env.items():
        monkeypatch.setenv(name, value)
    config = example.write()
    state = {"module.graph_modules.layer0.weight": torch.ones(2, 4), "module.graph_modules.layer0.bias": torch.zeros(2)}
    torch.save({"step": 100, "model": state}, "policy-v3.pt")
    catalogue = BackendSettings(checkpoints=("policy-v3=policy-v3.pt",))
    factory = PolicyConstructorModelFactory(seed=0, base_dir="", backend=catalogue)
    assert example.results, "no result follows the example"
    if example.results[0][0] == "text":
        ((_, _, text),) = example.results
        with pytest.raises(ConfigError) as caught:
            factory.build({"config_path": config})
        message, shown = str(caught.value).removeprefix(f"{tmp_path}/"), text.rstrip("\n")
        assert message == shown or (shown.endswith(" ...") and message.startswith(shown[:-3]))
        return
    model = factory.build({"config_path": config})
    tree = Cursor(resolve_file(config, example.env).tree)
    for kind, title, text in example.results:
        if kind == "json":
            assert repr(value_at(tree, title)) == repr(json.loads(text))  # repr: the order of keys, too
        else:
            assert kind == "pycon"
            names = {"model": model, "factory": factory, "torch": torch}
            parsed = doctest.DocTestParser().get_doctest(text, names, PAGE.name, str(PAGE), example.line)
            report: list[str] = []
            doctest.DocTestRunner().run(parsed, out=report.append)
            assert not report, "".join(report)
            assert parsed.examples


def constants(package: ModuleType) -> dict[str, set[str]]:
    """Return the words in the public constants of a package's modules, by name of the constant."""
    found: dict[str, set[str]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        for name, value in vars(importlib.import_module(f"{package.__name__}.{info.name}")).items():
            words = {value} if isinstance(value, str) else set(value) if isinstance(value, tuple | Mapping) else set()
            if name.isupper() and not name.startswith("_") and words and all(isinstance(word, str) for word in words):
                found[name] = words
    return found


def whole_word(word: str) -> str:
    """Return the pattern of a keyword that is no part of a longer word; ``module:`` begins one."""
    return rf"(?<!\w){re.escape(word)}" + (r"(?!\w)" if word[-1].isalpha() or word[-1] == "_" else "")


def test_every_keyword_of_the_language_has_an_example() -> None:
    words = constants(resolve) | constants(schema)
    assert {"DEFAULTS", "TEMPLATE", "MODES", "CASTS", "GRAPH_KEYS", "NODE_KEYS", "RETURNS", "SETTINGS"} <= words.keys()
    configs = "\n".join(example.text for example in EXAMPLES)
    listed_only = words.pop("DTYPES") | words.pop("WORDS")
    assert listed_only == set(DTYPES) | set(WORDS)
    keywords = set.union(*words.values()) | {"module:", "op:", "$$", "<<", "${env:"}
    missing = [word for word in keywords if not re.search(whole_word(word), configs)]
    assert missing == []
    assert [word for word in listed_only if f"`{word}`" not in PAGE.read_text()] == []


def test_the_table_of_bounds_is_complete() -> None:
    section = PAGE.read_text().partition("## Bounds")[2].partition("## ")[0]
    shown = [int(number) for number in re.findall(r"\| (\d+) \|$", section, re.MULTILINE)]
    assert shown == [value for name, value in vars(bounds).items() if name.startswith("MAX_")]
