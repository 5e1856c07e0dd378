"""YAML as config files, `--set` and selectors have it: YAML 1.1 as PyYAML reads it, with the floats of YAML 1.2."""

import math
import re
from collections.abc import Hashable
from typing import Any

import yaml

EXPONENT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+\Z")
"""A number such as 2e-4 or 8.0e1, which is text in YAML 1.1."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        key_nodes = [key_node for key_node, _ in node.value if key_node.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key_node, deep=True) for key_node in key_nodes]
        for key_node, key in zip(key_nodes, keys, strict=True):
            if isinstance(key, Hashable) and keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} appears twice; remove one of them", key_node.start_mark
                )
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `_Loader` would read as numbers."""


def _number(loader: _Loader, node: yaml.ScalarNode) -> float | str:
    """A float; text if it is too large for one, such as 7e123456, which may be a name."""
    number = loader.construct_yaml_float(node)
    is_too_large = math.isinf(number) and "inf" not in node.value.lower()
    return str(node.value) if is_too_large else number


_Loader.add_constructor("tag:yaml.org,2002:float", _number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, date: date.value)  # text, as in JSON
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))


def from_yaml(text: str) -> Any:
    """The value that a text in YAML means; `yaml.YAMLError` if it is none."""
    return yaml.load(text, _Loader)


def to_yaml(value: Any, **style: Any) -> str:
    """A value as YAML that `from_yaml` reads back; `style` is PyYAML's."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, **style)
    return text
