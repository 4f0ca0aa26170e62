"""YAML files: accepted documents, the place of every value, and ``defaults``."""

from pathlib import Path

import pytest
import yaml

from model_factory.config import resolve_mapping
from model_factory.config.resolve.load import load_file
from model_factory.config.syntax import yaml_tree
from model_factory.config.syntax.cursor import Cursor
from model_factory.config.syntax.plain_data import to_plain
from model_factory.config.syntax.yaml_tree import parse_yaml
from model_factory.errors import ConfigError

LOADERS = [yaml.SafeLoader] + ([yaml.CSafeLoader] if hasattr(yaml, "CSafeLoader") else [])


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__, autouse=True)
def _loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both of PyYAML's parsers must behave the same."""
    monkeypatch.setattr(yaml_tree, "_LOADER", request.param)
    parse_yaml.cache_clear()  # else the second parser would get the trees of the first


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "c.yaml")
    return str(caught.value)


def test_every_value_knows_its_line_and_column() -> None:
    tree = parse_yaml("a: 1\nb:\n  - x\n  - {c: 'd', é: e}\nt: |\n  text\n", "dir/c.yaml")
    places = {
        path: str(Cursor(tree).nearest(path).node.place)
        for path in [(), ("a",), ("b", 0), ("b", 1, "c"), ("b", 1, "é"), ("t",)]
    }
    assert places == {
        (): "dir/c.yaml:1:1",
        ("a",): "dir/c.yaml:1:4",
        ("b", 0): "dir/c.yaml:3:5",
        ("b", 1, "c"): "dir/c.yaml:4:9",
        ("b", 1, "é"): "dir/c.yaml:4:17",
        ("t",): "dir/c.yaml:5:4",
    }


def test_scalars_are_read_as_yaml_reads_them() -> None:
    text = "i: 0x10\nf: 1.5\ng: .inf\nb: yes\nn: ~\ns: '1'\nu: 1_000\ne: 1e-3\nm: !!str 5\nk: =\nl: '<<'"
    expected = {"i": 16, "f": 1.5, "g": float("inf"), "b": True, "n": None, "s": "1", "u": 1000}
    assert to_plain(parse_yaml(text, "c")) == {**expected, "e": "1e-3", "m": "5", "k": "=", "l": "<<"}


@pytest.mark.parametrize("date", ["2024-01-02", "2024-01-02 03:04:05", "2024-01-02T03:04:05.6Z"])
def test_a_date_stays_text(date: str) -> None:
    assert to_plain(parse_yaml(f"day: {date}", "c")) == {"day": date}


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "--- ~\n", "null"])
def test_an_empty_document_is_an_error(text: str) -> None:
    assert "empty" in refused(text)


@pytest.mark.parametrize(
    ("text", "found"), [("[1]", "a list of 1"), ("hello", "the string 'hello'"), ("5", "the number 5")]
)
def test_the_root_is_a_mapping(text: str, found: str) -> None:
    assert refused(text) == f"c.yaml:1:1: the root must be a mapping, found {found}"


def test_more_than_one_document_is_an_error() -> None:
    assert refused("a: 1\n---\nb: 2\n").startswith("c.yaml:2:1: more than one document")


@pytest.mark.parametrize(
    ("text", "place"), [("a: 1\nb: 2\na: 3", "3:1"), ("x: {k: 1, 'k': 2}", "1:11"), ("<<: {a: 1}\n<<: {b: 1}", "2:1")]
)
def test_a_key_given_twice_is_an_error(text: str, place: str) -> None:
    message = refused(text)
    assert message.startswith(f"c.yaml:{place}: ")
    assert "Duplicate mapping key" in message


@pytest.mark.parametrize("key", ["1", "1.5", "on", "no", "~", "true", "[a]", "{a: b}"])
def test_every_key_is_a_string(key: str) -> None:
    message = refused(f"ok: 1\n? {key}\n: 2")
    assert message.startswith("c.yaml:2:3: ")
    assert "every mapping key must be a string" in message


def test_a_key_that_looks_like_another_type_may_be_quoted() -> None:
    assert to_plain(parse_yaml("'on': 1\n\"1\": 2\n2024-01-01: 3\n'<<': 4", "c")) == {
        "on": 1,
        "1": 2,
        "2024-01-01": 3,
        "<<": 4,
    }


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['true']",
        "!!python/name:os.system",
        "!!python/tuple [1]",
        "!!binary aGk=",
        "!!set {a, b}",
        "!!omap [a: 1]",
        "!!pairs [a: 1]",
        "!custom x",
        "!!int [1]",
        "!!map x",
    ],
)
def test_tags_beyond_plain_data_are_errors(value: str) -> None:
    message = refused(f"a:\n  {value}")
    assert message.startswith("c.yaml:2:3: ")
    assert "is not allowed" in message


def test_a_tag_on_the_root_is_an_error() -> None:
    assert "is not allowed" in refused("!!set {a, b}")


@pytest.mark.parametrize("value", ["!!int abc", "!!int ''", "!!float x", "!!bool maybe", "!!int 0x"])
def test_a_scalar_that_does_not_fit_its_tag_is_an_error(value: str) -> None:
    assert "is not a YAML" in refused(f"a: {value}")


def test_anchors_aliases_and_merge_keys() -> None:
    text = "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\none:\n  y: 9\n  <<: *b\nboth: {<<: [*b, *m]}\nsame: *b\n"
    tree = to_plain(parse_yaml(text, "c"))
    assert list(tree["one"].items()) == [("x", 1), ("y", 9)]
    assert tree["both"] == {"x": 1, "y": 2, "z": 4}
    assert tree == yaml.safe_load(text)
    tree["same"]["x"] = 5
    assert tree["base"]["x"] == 1


def test_a_merge_key_takes_mappings() -> None:
    assert refused("a:\n  <<: 5").startswith("c.yaml:2:7: '<<' takes a mapping")
    assert refused("a:\n  <<: [5]").startswith("c.yaml:2:8: '<<' takes a mapping")


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: {c: *a}}", "&r {a: *r}", "a: &a {<<: *a}"])
def test_an_alias_inside_its_own_anchor_is_an_error(text: str) -> None:
    assert "inside its own anchor" in refused(text)


def test_an_alias_may_be_a_key() -> None:
    assert to_plain(parse_yaml("a: &k name\n*k : 1\n&l b: *l", "c")) == {"a": "name", "name": 1, "b": "b"}
    assert refused("a: &k 5\n*k : 1").startswith(
        "c.yaml:1:4: every mapping key must be a string; YAML reads '5' as int"
    )
    assert refused("a: &k [5]\n*k : 1").startswith("c.yaml:1:4: every mapping key must be a string, found a mapping")
    assert refused("&r {*r : 1}").startswith("c.yaml:1:1: every mapping key must be a string, found a mapping")


def test_an_anchor_is_defined_once_and_before_its_aliases() -> None:
    assert refused("a: &x 1\nb: &x 2").startswith(
        "c.yaml:2:4: not valid YAML: found duplicate anchor 'x'; first occurrence, second occurrence"
    )
    assert refused("a: *x\nb: &x 1").startswith("c.yaml:1:4: not valid YAML: found undefined alias 'x'")


def test_the_first_mapping_of_a_list_of_merges_wins() -> None:
    text = "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc: {<<: [*a, *b, {z: 3}], z: 4}"
    assert to_plain(parse_yaml(text, "c"))["c"] == yaml.safe_load(text)["c"] == {"x": 1, "y": 2, "z": 4}


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "a: *nowhere", "a: 'x", "\ta: 1", "a: \x01", 'a: "\\q"', "%YAML 9"]
)
def test_broken_yaml_names_the_file(text: str) -> None:
    assert refused(text).startswith("c.yaml")


def test_the_error_of_broken_yaml_quotes_the_text() -> None:
    assert "at '*nowhere'" in refused("a: *nowhere")
    assert "a reference needs quotes" in refused("n: {a: ${p.x}}")
    assert "needs quotes" not in refused("n: {a: 1]")


def test_broken_yaml_names_the_line() -> None:
    assert refused("a: 1\nb: [1\nc: 2").startswith("c.yaml:3:")
    assert refused("a: 1\nb: x\x01").startswith("c.yaml:2:5: not valid YAML")


@pytest.mark.parametrize("escape", ["\\ud800", "\\udc00\\ud800", "\\UFFFFFFFF"])
def test_an_escape_without_a_character_is_an_error(escape: str) -> None:
    assert refused(f'a: "{escape}"').startswith("c.yaml")
    assert refused(f'"{escape}": a').startswith("c.yaml")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load_error(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_file(path)
    return str(caught.value)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    tree = load_file(write(tmp_path / "c.yaml", "\ufeffa: 1"))
    assert to_plain(tree) == {"a": 1}
    assert str(Cursor(tree).nearest(("a",)).node.place) == f"{tmp_path}/c.yaml:1:4"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert "none.yaml': No such file or directory" in load_error(tmp_path / "none.yaml")
    assert "cannot read the config file 'a\\x00b': embedded null byte" in load_error(Path("a\0b"))
    assert "not a regular file" in load_error(tmp_path)
    assert "not a regular file" in load_error(Path("/dev/zero"))
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9")
    assert f"{tmp_path}/latin.yaml:2:7: the file is not UTF-8" in load_error(tmp_path / "latin.yaml")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot read the config file" in load_error(tmp_path / "loop")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "c.yaml", "a: 1")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # the tests may run as root, and no mode stops root
    assert "Permission denied" in load_error(path)


def test_defaults_merge_in_order_and_the_file_goes_on_top(tmp_path: Path) -> None:
    write(tmp_path / "base/one.yaml", "params: {a: 1, b: 1, c: 1}\nfrom: one")
    write(tmp_path / "base/two.yaml", "params: {b: 2, c: 2}")
    top = write(tmp_path / "exp/top.yaml", "defaults: [../base/one.yaml, ../base/two.yaml]\nparams: {c: 3}")
    tree = load_file(top)
    assert to_plain(tree) == {"params": {"a": 1, "b": 2, "c": 3}, "from": "one"}
    assert str(Cursor(tree).nearest(("params", "b")).node.place) == f"{tmp_path}/exp/../base/two.yaml:1:13"
    assert str(Cursor(tree).nearest(("params", "c")).node.place) == f"{tmp_path}/exp/top.yaml:2:13"


def test_defaults_are_recursive_and_relative_to_the_naming_file(tmp_path: Path) -> None:
    write(tmp_path / "x/deep/leaf.yaml", "v: leaf\nw: leaf")
    write(tmp_path / "x/mid.yaml", "defaults: [deep/leaf.yaml]\nw: mid")
    tree = load_file(write(tmp_path / "top.yaml", "defaults: [x/mid.yaml]\nz: top"))
    assert to_plain(tree) == {"v": "leaf", "w": "mid", "z": "top"}
    assert Cursor(tree).get("defaults") is None


def test_one_file_may_be_included_along_two_ways(tmp_path: Path) -> None:
    write(tmp_path / "d.yaml", "d: 1")
    write(tmp_path / "b.yaml", "defaults: [d.yaml]\nb: 1")
    write(tmp_path / "c.yaml", "defaults: [d.yaml]\nc: 1")
    assert to_plain(load_file(write(tmp_path / "a.yaml", "defaults: [b.yaml, c.yaml]"))) == {"d": 1, "b": 1, "c": 1}


def test_a_loop_of_defaults_shows_the_chain(tmp_path: Path) -> None:
    write(tmp_path / "b.yaml", "defaults: [sub/../a.yaml]")
    (tmp_path / "sub").mkdir()
    message = load_error(write(tmp_path / "a.yaml", "defaults: [b.yaml]"))
    chain = f"{tmp_path}/a.yaml -> {tmp_path}/b.yaml -> {tmp_path}/sub/../a.yaml"
    assert message == f"{tmp_path}/b.yaml:1:12: defaults include cycle detected: {chain}"
    assert "defaults include cycle detected" in load_error(write(tmp_path / "self.yaml", "defaults: [self.yaml]"))


def test_a_missing_default_names_where_it_is_named(tmp_path: Path) -> None:
    message = load_error(write(tmp_path / "a.yaml", "x: 1\ndefaults:\n  - gone.yaml"))
    assert message.startswith(f"{tmp_path}/a.yaml:3:5: cannot read the config file '{tmp_path}/gone.yaml': ")


@pytest.mark.parametrize("value", ["base.yaml", "0", "false", "''", "[1]", "['']", "[[a.yaml]]", "{a: b}", '["a\\0b"]'])
def test_defaults_are_a_list_of_file_paths(tmp_path: Path, value: str) -> None:
    message = load_error(write(tmp_path / "a.yaml", f"defaults: {value}"))
    assert message.startswith(f"{tmp_path}/a.yaml:1:1")
    assert "defaults" in message


@pytest.mark.parametrize("value", ["[]", "null", "~", ""])
def test_empty_defaults_mean_nothing(tmp_path: Path, value: str) -> None:
    assert to_plain(load_file(write(tmp_path / "a.yaml", f"defaults: {value}\nb: 1"))) == {"b": 1}
    assert to_plain(load_file(write(tmp_path / "top.yaml", "defaults: [a.yaml]\nc: 2"))) == {"b": 1, "c": 2}


def test_null_defaults_of_an_in_memory_config_mean_nothing() -> None:
    config = {"schema_version": 1, "model": {"sequential": {"layers": [{"_type_": "nn.ReLU"}]}}}
    assert resolve_mapping(config | {"defaults": None}, {}).digest == resolve_mapping(config, {}).digest
    with pytest.raises(ConfigError, match="in-memory"):
        resolve_mapping(config | {"defaults": []}, {})
