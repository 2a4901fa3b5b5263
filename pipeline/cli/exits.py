"""Exit codes of the command line."""

OK, FAILED, USAGE, SOME_NOT_GOOD, NONE_GOOD, THRESHOLD_FIRED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

EXIT_CODES_HELP = """\
exit codes:
  0  every target good              3  published, some targets not good
  1  the command itself failed      4  published, none good; inspect: the target is not good
  2  usage or inventory             5  a --fail-if condition holds
                                    130  interrupted
"""
