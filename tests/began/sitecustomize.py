"""Of programs that tests begin, in a run that is about another driver than the default one."""

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import driven

driven.choose()
