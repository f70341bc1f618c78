"""`make same-bytes REF=COMMIT`: this checkout, as it lies there, gives the bytes that COMMIT gives.

Both run the commands of configurations.yaml, each on its own code, in folders of the same name. Then ids, rows,
snapshots, averages, states, other results and exit codes are compared; what is not deterministic by contract is not.

    make same-bytes REF=a6535a4                          # ONLY=name,name*: some configurations
    make same-bytes REF=a6535a4 AGAINST=3f2c1d0          # two commits

A line for each configuration: same, differs as stated (and why), or RED with what differs; exit code 1 if any is red.
The runs of a red one stay for a look.

A deliberate difference: copy what was printed into differences.yaml, with stars, a reason and since when, and say in it
which defect is mended. A renamed override: `renamed` in that file. A new choice: into the commands of a configuration
(an everyday test says so), with `needs` where the older commit cannot have it.

The runner knows the contracts alone (commands, the run directory, metrics.jsonl, safetensors) and imports nothing of
lawa_exp, so that it goes on working while modules move.
"""
