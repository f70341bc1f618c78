"""What the settings of every feedback have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from lawa_exp.averaging import AveragerSettings
from lawa_exp.axes.choice import Choice, Planned
from lawa_exp.system.errors import UserError

if TYPE_CHECKING:
    from lawa_exp.seams.callback import Callback
    from lawa_exp.seams.context import Context


class FeedbackSettings(Choice):
    """An averager, and how often its average goes back into the live weights."""

    every: int  # steps
    optimizer: str = "keep"  # what becomes of the optimizer's state then: keep or reset
    from_initial: ClassVar[bool] = False  # whether the averager begins with the initial weights

    @property
    def kind(self) -> str:
        """Its name in FEEDBACK."""
        from lawa_exp.axes.feedback import FEEDBACK

        return FEEDBACK.kind_of(self)

    @property
    def folder_words(self) -> tuple[str, ...]:
        return () if self.absent else (self.kind,)

    def check(self, planned: Planned) -> None:
        from lawa_exp.axes.optimizer import OPTIMIZERS

        optimizer = planned.config.optimizer
        if optimizer.evaluates_others:
            raise UserError(
                f"feedback={self.kind}: expected none with optimizer={OPTIMIZERS.kind_of(optimizer)}, which keeps "
                "an average of its own that would not follow"
            )

    def check_continues(self, before: Choice, step: int) -> None:
        if not (self.absent or before.absent or type(self) is type(before)):
            raise UserError(
                "init.optimizer=keep: the feedback has a state of the source's, which is of another kind "
                f"(the source has {before}, this command {self}); choose reset, none or the same"
            )

    def lines(self, planned: Planned) -> Iterator[str]:
        settings: Any = self  # a dataclass
        yield f"feedback    {self.kind}: {', '.join(f'{k}={v}' for k, v in asdict(settings).items())}"

    def warnings(self, planned: Planned) -> Iterator[str]:
        steps = planned.config.steps
        if len(self.averager.needed(steps // self.every * self.every)) < self.averager.observations:
            yield f"feedback={self.kind} every {self.every} steps: the budget of {steps} steps never gets to it"

    def copies(self, steps: int) -> int:
        return self.averager.copies()

    def snapshots(self, steps: int) -> int:
        return len(self.averager.needed(steps)) if self.averager.windowed else 0

    def build(self, context: Context) -> Callback | None:
        """It at work; None where there is none."""
        from lawa_exp.axes.feedback.feedback import Feedback

        return Feedback(self, context.averaged, context.optimizer)

    @property
    def averager(self) -> AveragerSettings:
        raise NotImplementedError
