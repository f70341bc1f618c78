"""An objective: the focal loss, (1 - p)^gamma times the cross-entropy of a sample whose class has the probability p
(Lin et al. 2017, equation 4). What is easy counts less.

    python -m lawa_exp objective=custom objective.builder=focal_loss:Focal objective.args='{gamma: 2}' ...

`loss` stays the task's own, for the rows; `weights` says which terms are trained.
"""

from torch.nn import functional as F

from lawa_exp.seams.objective import Objective
from lawa_exp.seams.task import IGNORE


class Focal(Objective):
    def __init__(self, model, task, gamma=2.0):
        super().__init__(model)
        self.task, self.gamma = task, gamma
        self.weights = {"focal": 1.0}
        self.reported = ["focal"]  # in training rows

    def forward(self, inputs, targets):
        """Sums over the pass, each a scalar."""
        scores = self.model(inputs)
        each = F.cross_entropy(scores.flatten(0, -2), targets.flatten(), ignore_index=IGNORE, reduction="none")
        focal = ((1 - (-each).exp()) ** self.gamma * each).sum()
        return {"loss": self.task.loss(scores, targets), "focal": focal}

    def counts(self, samples, targets):
        """What each term is divided by, of the whole batch."""
        return {"loss": targets, "focal": targets}
