"""One child process per target: its limits, the frame it prints, and the resulting attempt."""

from pipeline.fanout.runner.child import Limits, error_line, outcome, result, run, without_quoted_stderr
from pipeline.fanout.runner.digest import Digester
from pipeline.fanout.runner.process import python_path
from pipeline.fanout.runner.unpack import remove_orphans

__all__ = [
    "Digester",
    "Limits",
    "error_line",
    "outcome",
    "python_path",
    "remove_orphans",
    "result",
    "run",
    "without_quoted_stderr",
]
