"""Console text -> graded crash reports: panics, oopses, sanitizer reports, lockups, stalls, warnings.

Pure and bounded: bytes go in, `CrashReport`s come out, whatever the guest prints. `formats` says what reports look
like, `titles` how one is named, `scanner` where one begins and ends. `watch` does it while the console prints.
"""

from vmtest.crash.formats import FORMATS, Format
from vmtest.crash.scanner import CrashScanner, find_reports
from vmtest.crash.watch import CrashWatch

__all__ = ["FORMATS", "CrashScanner", "CrashWatch", "Format", "find_reports"]
