"""Words of settings that are used where no settings are read."""

BN_POLICIES = ("recalibrate", "average", "latest")  # evaluate.bn
BUDGET_UNITS = ("steps", "epochs", "tokens", "samples")
STABLE = "stable"  # init.from: the constant-rate run of the same settings, which a sweep trains first
