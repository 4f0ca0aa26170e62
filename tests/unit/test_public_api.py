"""The names that users import; a change here is a change for users."""

import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import model_factory
import model_factory_server
from model_factory import errors

PACKAGES = pytest.mark.parametrize(
    ("package", "distribution"),
    [(model_factory, "model-factory"), (model_factory_server, "model-factory-server")],
    ids=["client", "server"],
)


@PACKAGES
def test_names_are_sorted(package, distribution):
    assert package.__all__ == sorted(package.__all__)


@PACKAGES
def test_dir_lists_every_public_name(package, distribution):
    code = f"import {package.__name__} as package; print(*dir(package))"  # before the lazy names are looked up
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {*package.__all__, "__version__"} <= set(done.stdout.split())
    assert len(dir(package)) == len(set(dir(package)))


@PACKAGES
def test_the_version_is_the_version_of_the_distribution(package, distribution):
    assert package.__version__ == metadata.version(distribution)
    with pytest.raises(AttributeError, match=f"module '{package.__name__}' has no attribute 'versoin'"):
        _ = package.versoin


@PACKAGES
def test_type_checkers_may_read_the_package(package, distribution):
    assert (Path(package.__file__).parent / "py.typed").is_file()


def test_client_names():
    assert model_factory.__all__ == [
        "AccessError",
        "BuildError",
        "BuildInfo",
        "BusyError",
        "CallSignatureError",
        "Checkpoint",
        "ConfigError",
        "Credentials",
        "FormatError",
        "GraphExecutionError",
        "GraphModel",
        "IntegrityError",
        "LimitError",
        "LockError",
        "MissingBlobError",
        "ModelFactory",
        "ModelFactoryError",
        "NotPortableError",
        "OutdatedBuildError",
        "RangeError",
        "RemoteModelFactory",
        "ServerError",
        "SourceError",
        "StoreError",
        "UnavailableError",
        "load",
        "save",
    ]
    assert all(hasattr(model_factory, name) for name in model_factory.__all__)


def test_server_names():
    assert model_factory_server.__all__ == ["PolicyConstructorModelFactory", "local_server"]
    assert all(hasattr(model_factory_server, name) for name in model_factory_server.__all__)


def test_remote_factory_arguments():
    parameters = list(inspect.signature(model_factory.RemoteModelFactory).parameters)
    assert parameters == [
        "address",
        "seed",
        "dtype",
        "device",
        "base_dir",
        "cache_dir",
        "cache_bytes",
        "timeout",
        "credentials",
        "trust_source",
        "share_values",
        "lock",
        "offline",
    ]


def test_both_factories_satisfy_the_protocol(tmp_path):
    remote = model_factory.RemoteModelFactory("127.0.0.1:1", cache_dir=tmp_path)
    local = model_factory_server.PolicyConstructorModelFactory()
    assert isinstance(remote, model_factory.ModelFactory)
    assert isinstance(local, model_factory.ModelFactory)


def test_importing_the_client_imports_no_torch():
    code = "import sys, model_factory, model_factory.config, model_factory.store; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_every_error_is_in_the_tree_of_its_docstring():
    drawn = errors.__doc__
    classes = [item for item in vars(errors).values() if inspect.isclass(item) and issubclass(item, Exception)]
    assert len(classes) > 10
    assert [item.__name__ for item in classes if item.__name__ not in drawn] == []
