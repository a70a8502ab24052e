# Where the corpus is on this machine.
@PLACES@
