#!/usr/bin/env python3
"""`hubler-auth replay`, from this checkout's own environment."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ROOT / ".venv" / "bin" / "python"

if Path(sys.prefix) != PYTHON.parent.parent:
    if not PYTHON.exists() and subprocess.call(["sh", str(ROOT / "scripts" / "environment")]):
        sys.exit(2)
    os.execv(PYTHON, [str(PYTHON), *sys.argv])

from service.__main__ import main

# A --config behind the command's name comes before this one.
sys.argv[1:1] = ["--config", str(ROOT / "config.toml"), "replay"]
main()
