"""YAML as recipes are written in it: no aliases, tags or merges, no key twice, and numbers as YAML
1.2 has them.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

# The longest that ships has 3 kB; PyYAML takes a thousand times the length of a text in memory.
MAX_BYTES = 200_000
DEEPEST = 50


class _Loader(yaml.SafeLoader):
    """YAML without anchors (a few lines of them can expand to gigabytes), tags, merges, dates and
    keys that are given twice, and with YAML 1.2's floats (1e-5 is a number) and booleans (``on``
    and ``no`` are words).
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not allowed in recipes", event.start_mark
            )
        if event.tag is not None:
            raise yaml.composer.ComposerError(
                None, None, f"tags ({event.tag}) are not allowed in recipes", event.start_mark
            )
        return super().compose_node(parent, index)

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        # PyYAML looks ahead over what is open, which takes a time that grows with its square.
        if self.flow_level >= DEEPEST:
            raise yaml.scanner.ScannerError(
                None, None, f"lists and mappings are nested more than {DEEPEST} deep", self.get_mark()
            )
        super().fetch_flow_collection_start(token)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        given: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in given:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            given.add(key.value)
        return super().construct_mapping(node, deep)


_LEFT_OUT = {f"tag:yaml.org,2002:{name}" for name in ("bool", "merge", "timestamp", "value")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _LEFT_OUT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)|"
        r"[-+]?([0-9]*\.[0-9]+|[0-9]+\.[0-9]*)|"
        r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
    list("-+0123456789."),
)


def parsed(text: str) -> Any:
    """The value of a YAML text; raises ``ValueError`` for what is none: malformed, nested too
    deeply, or with numbers of thousands of digits.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(str(error)) from error
