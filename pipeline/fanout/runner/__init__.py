"""One child process for one target: its limits, its frame, and the attempt that comes of it."""

from pipeline.fanout.runner.child import Limits, bounded, outcome, own_words, python_path, result, run

__all__ = ["Limits", "bounded", "outcome", "own_words", "python_path", "result", "run"]
