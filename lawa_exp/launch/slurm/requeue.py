"""`python -m lawa_exp.launch.slurm.requeue RUN CODE`: after a start of a job ended with CODE, whether the job goes on.

The last line of our sbatch scripts. An interruption goes on however often it comes. An error of the program's own
goes on where it had not come at that step before, a few times; then the run is FAILED until somebody submits it again.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from lawa_exp.launch.slurm.queue import ask, queue
from lawa_exp.storage.commit import steps_in
from lawa_exp.storage.rundir import Facts, RunDir
from lawa_exp.system.cli import Parser, exit_code
from lawa_exp.system.errors import Failed, UserError
from lawa_exp.system.machine import this_job

OWN_ERRORS = 3  # of one job, at different steps
ENDED = (0, 2, 3)  # done, the user's mistake, diverged
STOPPED = 75
INTERRUPTED = (STOPPED, *(128 + s for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)))


def main(arguments: list[str]) -> int:
    p = Parser(
        prog="python -m lawa_exp.launch.slurm.requeue", description="Requeues this SLURM job if its run is to go on."
    )
    p.add_argument("run", metavar="RUN", type=Path, help="the run directory")
    p.add_argument("code", metavar="CODE", type=int, help="what the training, or srun, exited with")
    args = p.parse_args(arguments)
    return exit_code(lambda: requeue(RunDir(args.run), args.code))


def requeue(run: RunDir, code: int) -> int:
    job, _ = this_job()  # its place in an array: a bare number can mean the whole array
    if not job and code not in ENDED:
        raise UserError("not in a SLURM job: this is the last line of its script")
    goes_on, why = decide(run, code)
    if not goes_on:
        print(f"not requeued: {why}")
        return 0
    assert job
    here = queue([job]).get(job)
    if here is None or here.state != "RUNNING":  # somebody cancelled it, or SLURM requeues it by itself
        print(f"not requeued: the job is {here.state if here else 'gone'}")
        return 0
    print(f"requeued: {why}", flush=True)
    try:
        ask("scontrol", "requeue", job)
    except Failed as error:
        print(f"warning: {error}", file=sys.stderr)
    return 0


def decide(run: RunDir, code: int) -> tuple[bool, str]:
    """Whether the run goes on after a start that ended with this code, and why."""
    marker, _ = run.marker() or ("", {})
    if code in ENDED:
        return False, {0: "done", 2: "a mistake in the command", 3: "diverged"}[code]
    if code in INTERRUPTED or (code > 128 and marker == "STOPPED"):  # srun ends the ranks that are slower
        return True, f"interrupted (exit code {code})"
    if code == 128 + signal.SIGKILL:
        return False, "killed; submitting again continues"
    if not run.config.exists():
        return False, f"it ended before it began (exit code {code}); see the job's log"
    job, start = this_job()
    mine = [e for e in run.errors() if e["job"] == job]
    if not mine or mine[-1]["start"] != start:  # it ended in its first second, by a crash, or on another rank
        if marker != "FAILED":
            step = max(steps_in(run.resume), default=0)
            run.mark("FAILED", step=step, reason=f"exit code {code}, without a word; see the job's log")
        _, facts = run.marker() or ("", Facts())
        run.note_error(facts["step"], str(facts.get("reason", "")))
        mine = [e for e in run.errors() if e["job"] == job]
    error = mine[-1]
    if error["step"] in [e["step"] for e in mine[:-1]]:
        return False, f"failed again after step {error['step']:,}: {error['reason']}"
    if len(mine) > OWN_ERRORS:
        return False, f"failed {len(mine)} times, now after step {error['step']:,}: {error['reason']}"
    return True, f"failed for the first time after step {error['step']:,}: {error['reason']}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
