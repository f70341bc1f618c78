"""A feedback: training goes on half-way between its weights and where it was the last time (Zhang et al. 2019).

    python -m lawa_exp feedback=custom feedback.every=5 feedback.from_initial=true \
        feedback.builder=half_way_back:half_way feedback.args='{every: 5}' ...

It is an averager's settings; every `feedback.every` steps its average is copied over the weights.
"""

from lawa_exp.averaging import EmaSettings


def half_way(every=5):
    return EmaSettings(decay=0.5, every=every)
