"""`!default ema.decay` in conf/: the default in that averager's settings (lawa_exp/averaging/ema.py).

A default stands once, in the class that other people's loops use as well. What Hydra composes has the value itself, so
`--cfg job` and `--help` show it. And which choices of Hydra's own groups are the default here.
"""

from __future__ import annotations

from lawa_exp.averaging import AVERAGERS
from lawa_exp.config.rules import default_of, near, setting_names
from lawa_exp.system.errors import UserError

TAG = "!default"
OF_HYDRA = {"launcher": "local", "hydra_logging": "none", "job_logging": "none"}


def read_defaults() -> None:
    """From here on YAML that is read safely, which OmegaConf's is, may hold the tag."""
    import yaml

    for loader in (yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
        loader.add_constructor(TAG, lambda loader, node: named(str(node.value)))


def set_hydras_defaults() -> None:
    """Makes `OF_HYDRA` Hydra's own defaults.

    An override in conf/config.yaml would come before one in an experiment, which Hydra then passes over in silence.
    """
    from hydra.conf import HydraConf
    from hydra.core.config_store import ConfigStore

    node = HydraConf()
    node.defaults = [{group: OF_HYDRA.get(group, choice) for group, choice in each.items()} for each in node.defaults]
    ConfigStore.instance().store(group="hydra", name="config", node=node, provider="lawa_exp")


def named(name: str) -> object:
    """The default of `KIND.SETTING`. UserError where there is no such setting."""
    kind, _, setting = name.partition(".")
    if kind in AVERAGERS and setting in setting_names(AVERAGERS[kind]):
        return default_of(AVERAGERS[kind], setting)
    names = (f"{kind}.{setting}" for kind, cls in AVERAGERS.items() for setting in setting_names(cls))
    raise UserError(f"{TAG} {name}: {near(name, names)}")
