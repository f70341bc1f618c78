"""A schedule: triangles between a low rate and the peak (Smith 2017, Cyclical Learning Rates).

    python -m lawa_exp lr=custom lr.builder=cyclic_rate:cyclic lr.args='{period: 20}' lr.uses_horizon=false ...

The function is a pure one of the step. `schedule` has the settings: peak, warmup_steps, horizon, unit.
"""


def cyclic(schedule, period=20, low_ratio=0.1):
    def rate(batches, step):
        """Of the update that completes `step`. batches: a `lawa_exp.seams.batches.Batches`."""
        place = (step - schedule.warmup_steps) % period / period  # of the triangle, 0 to 1
        height = 1 - abs(2 * place - 1)
        return schedule.peak * (low_ratio + (1 - low_ratio) * height)

    return rate
