"""What happened to every request, and why: recorded while it runs, told afterwards.

>>> from miriam.trace import Recorder, explain
>>> recorder = Recorder()
>>> runtime = miriam.Runtime(listeners=[recorder])  # doctest: +SKIP
>>> print(explain(recorder.recording(), number=17))  # doctest: +SKIP
"""

from miriam.trace.explain import Story, explain
from miriam.trace.perfetto import document
from miriam.trace.recorder import Recorder
from miriam.trace.recording import Decision, Done, Recording, Traced, read

__all__ = ["Decision", "Done", "Recorder", "Recording", "Story", "Traced", "document", "explain", "read"]
