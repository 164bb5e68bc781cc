"""The exit codes of `rocketq worker`, for those who supervise it."""

#: Told to stop (SIGTERM, SIGINT); everything in flight was finished.
STOPPED = 0
#: Something broke that the worker cannot mend; its log has the traceback.
CRASHED = 1
#: The options are wrong, or the application cannot be loaded. Starting it again will not help.
USAGE = 2
#: Told to stop; what was still running after the shutdown timeout was left and will be delivered again.
HANDED_BACK = 3
#: Told twice: ends at once with 128 + the signal's number (130, 143); what was in flight will be delivered again.
TOLD_TWICE = 128
