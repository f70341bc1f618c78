"""Names of a setting that commands have as a flag, too."""

BN_POLICIES = ("recalibrate", "average", "latest")  # evaluate.bn
