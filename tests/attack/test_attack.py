"""A short part of the attack, the same every time; all of it: `make attack`."""

import subprocess
import sys
from pathlib import Path

SHORT = """
import attack
table, wrong = attack.attack(short=True)
assert not wrong, "\\n".join(wrong)
assert table["tried"].sum() > 60, table
"""


def test_a_short_attack_loses_nothing():
    """In a process of its own, which has computed nothing before it forks."""
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", SHORT], cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
