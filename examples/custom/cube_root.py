"""A scaling: the rate grows with the cube root of the batch.

python -m lawa_exp scaling=custom scaling.builder=cube_root:cube_root scaling.args='{base_batch: 16}' ...
"""


def cube_root(base_batch=16):
    def factor(size, tokens_per_sample):
        return (size / base_batch) ** (1 / 3)

    return factor
