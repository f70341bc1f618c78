"""`!default ema.decay` in conf/: the default in that averager's settings (lawa_exp/averaging/ema.py).

A default stands once, in the class that other people's loops use as well. What Hydra composes has the value itself, so
`--cfg job` and `--help` show it.
"""

from __future__ import annotations

from lawa_exp.averaging import AVERAGERS
from lawa_exp.config.rules import default_of, near, setting_names
from lawa_exp.system.errors import UserError

TAG = "!default"


def read_defaults() -> None:
    """From here on YAML that is read safely, which OmegaConf's is, may hold the tag."""
    import yaml

    for loader in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        loader.add_constructor(TAG, lambda loader, node: named(str(node.value)))


def named(name: str) -> object:
    """The default of `KIND.SETTING`. UserError where there is no such setting."""
    kind, _, setting = name.partition(".")
    if kind in AVERAGERS and setting in setting_names(AVERAGERS[kind]):
        return default_of(AVERAGERS[kind], setting)
    names = (f"{kind}.{setting}" for kind, cls in AVERAGERS.items() for setting in setting_names(cls))
    raise UserError(f"{TAG} {name}: {near(name, names)}")
