"""Which of the published model files is right for a machine.

    fits     what each one takes where it would lie, and how fast it would speak: the sums
    choice   the one to take, and why
    table    both as lines of text
    check    whether there is the GPU that was asked for

All of it is arithmetic over a `Hardware` and the settings: nothing is loaded, nothing is measured.
"""
