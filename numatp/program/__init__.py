"""IN WHAT ORDER? Ops, their barriers, their memory, and the Program that the C runtime executes.

words/       what a forward pass is written in; ops.py puts the files together
values.py    what words hand to each other, and the memory that it lies in
recorder.py  what every word needs: the site, buffers, activations made once
builder.py   ops in order, and the barriers between them
layout.py    where each buffer lies; memory is given again after the last read
step.py      the Step as rank 0 writes it for all
"""
