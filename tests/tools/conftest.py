"""The tools are a folder of scripts, not a package."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))
