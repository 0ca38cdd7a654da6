"""The process that the demonstration kills: `python -m fostore.demo FOLDER`."""

import sys
from pathlib import Path

from fostore.demo import stream_and_die

stream_and_die(Path(sys.argv[1]))
