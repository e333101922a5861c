# What a run says: a line for each job that is done or was stopped, in place of Snakemake's blocks of some ten lines, which
# its log below .snakemake/log keeps. Failures and warnings are as Snakemake has them, and so is all that a dry run says, or
# a run with --printshellcmds, --verbose or --debug-dag.
import logging
import time


def title(rule, logs):
    """A job as `viny status` calls it, by its log's place; its rule if it has none."""
    if not logs:
        return rule
    stage, *name = Path(logs[0]).relative_to(Path(ROOT, "logs")).with_suffix("").parts
    return f"{stage} {Path(*name)}" if name else stage


def stop_of(logs):
    """Where Ctrl-C, or SIGTERM to the run, stopped a job, by the last line of its log; empty if neither ended it."""
    # 9.27.1: set at SIGTERM. Without it, jobs that this stopped are shown as failed.
    signals = ("SIGINT", "SIGTERM") if inside("scheduler._user_kill", None) else ("SIGINT",)
    try:
        last = last_lines(logs[0])[-1]
    except (IndexError, OSError):
        return ""
    said = last.removeprefix("viny: ").partition(";")[0]
    return said if said.startswith(tuple(f"stopped by {name}" for name in signals)) else ""


class LineForEachJob(logging.Handler):
    """Passes Snakemake's messages on to its handler, but for those of a job's start and end."""

    # 9.27.1: names of events, and texts. What is called or says something else is passed on.
    BLOCKS = {"WORKFLOW_STARTED", "JOB_STARTED", "GROUP_INFO"}
    TEXTS = (
        "Select jobs to execute...",
        "RuleException:\nCalledProcessError in file ",
    )  # the latter before a JOB_ERROR

    def __init__(self, whole):
        super().__init__()
        self.whole, self.titles, self.ended = whole, {}, []
        self.stopped = self.failed = self.ending = False

    def line(self, text):
        print(f"{time.strftime('%H:%M:%S')}  {text}", file=self.whole.stream, flush=True)

    def emit(self, record):
        event = getattr(getattr(record, "event", None), "name", "")
        if event == "JOB_INFO":
            self.titles[record.jobid] = title(record.rule_name, record.log)
        elif event == "JOB_FINISHED":
            self.ended.append(self.titles.get(record.job_id, record.getMessage()))
        elif event == "PROGRESS":
            if self.whole.filter(record):  # else --quiet progress
                for at, job in enumerate(self.ended, record.done - len(self.ended) + 1):
                    self.line(f"{at} of {record.total}  {job}")
            self.ended = []
        elif event == "JOB_ERROR" and (stop := stop_of(record.log)):
            self.stopped = True
            self.line(f"{title(record.rule_name, record.log)}: {stop}")
        elif self.stopped and not self.failed and "At least one job did not complete successfully" in str(record.msg):
            pass  # because it was stopped, which is said
        elif str(record.msg).startswith("Will exit after finishing currently running jobs"):
            if not self.ending:  # else again at each job's end
                self.line("stopped by SIGTERM: no more jobs start; those that run end first")
            self.ending = True
        elif event not in self.BLOCKS and not str(record.msg).startswith(self.TEXTS):
            self.failed |= event == "JOB_ERROR"
            self.whole.handle(record)


if IS_DRIVER:
    # 9.27.1: what the command line says of the output. Without it, the blocks are shown.
    said = inside("output_settings", None)
    if not any(getattr(said, name, True) for name in ("dryrun", "printshellcmds", "verbose", "debug_dag")):
        # 9.27.1: the handler that writes to the terminal. Without it, or with --logger, the blocks are shown.
        messages = logging.getLogger("snakemake.logging")
        for handler in [one for one in messages.handlers if one.name == "DefaultStreamHandler"]:
            messages.removeHandler(handler)
            messages.addHandler(LineForEachJob(handler))
