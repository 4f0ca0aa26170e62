"""A library of an operator's; its own file is not what its blocks need."""

import yaml

VERSION = yaml.safe_load("2")
