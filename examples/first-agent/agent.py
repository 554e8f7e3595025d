#!/usr/bin/env python3
"""A small agent that plans, writes, tests and repairs a program, then tries what it must not do.

It is scripted: no model is asked, so every run says the same. What it does is what such agents do, and the
program that it writes, the tests that fail and the errors of the kernel are real.
"""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

JOB = Path("/job")
OUT = JOB / "out"

PROGRAM = '''\
"""Roman numerals, from 1 to 3999."""

VALUES = [(1000, "M"), (500, "D"), (100, "C"), (50, "L"), (10, "X"), (5, "V"), (1, "I")]


def to_roman(number):
    if not 1 <= number <= 3999:
        raise ValueError(f"{number} is not between 1 and 3999")
    text = ""
    for value, letters in VALUES:
        while number >= value:
            text += letters
            number -= value
    return text
'''

TESTS = '''\
import unittest

from roman import to_roman


class Roman(unittest.TestCase):
    def test_adds_up(self):
        self.assertEqual(to_roman(1666), "MDCLXVI")

    def test_subtracts_before_a_greater_letter(self):
        self.assertEqual(to_roman(1994), "MCMXCIV")

    def test_refuses_what_has_no_numeral(self):
        for number in (0, -1, 4000):
            self.assertRaises(ValueError, to_roman, number)


unittest.main()
'''

# Each pair of letters that subtracts goes before the greater letter's own next smaller one.
PAIRS = {"M": (900, "CM"), "D": (400, "CD"), "C": (90, "XC"), "L": (40, "XL"), "X": (9, "IX"), "V": (4, "IV")}

diary = []


def say(step, text):
    """Prints a line of the diary and keeps it for the report."""
    diary.append((step, text))
    print(f"  {step:<8}{text}", flush=True)


def write(name, text):
    (JOB / name).write_text(text)
    say("write", f"/job/{name}, {len(text.splitlines())} lines")


def run_tests():
    """Runs the tests as a child process. Gives what failed, as (expected, got), or None if nothing did."""
    done = subprocess.run([sys.executable, "test_roman.py"], cwd=JOB, capture_output=True, text=True, timeout=30)
    count = re.search(r"Ran (\d+) tests?", done.stderr)
    if count is None:
        raise SystemExit(f"the tests did not run:\n{done.stderr}")
    if done.returncode == 0:
        say("test", f"{count[1]} run, all pass")
        return None
    wrong = re.search(r"AssertionError: '(\w+)' != '(\w+)'", done.stderr)
    if wrong is None:
        raise SystemExit(f"a failure that the plan has no answer to:\n{done.stderr}")
    say("test", f"{count[1]} run, 1 fails: got {wrong[1]}, expected {wrong[2]}")
    return wrong[2], wrong[1]


def repair(expected, got):
    """Finds which pairs the expected numeral has and the program never writes, and adds them all."""
    lacking = [pair for _, pair in PAIRS.values() if pair in expected and pair not in got]
    if not lacking:
        raise SystemExit(f"{expected} has no pair that {got} lacks: the plan has no answer to that")
    say("think", f"{', '.join(lacking)} are never written: no letter subtracts")
    text = (JOB / "roman.py").read_text()
    for letter, (value, pair) in PAIRS.items():
        text = re.sub(rf'(\(\d+, "{letter}"\),)', rf'\1 ({value}, "{pair}"),', text)
    text = text.replace('"), (', '"),\n    (').replace("= [(", "= [\n    (").replace(")]\n", "),\n]\n")
    (JOB / "roman.py").write_text(text)
    say("repair", f"/job/roman.py, {len(PAIRS)} pairs added")


def attempt(what, act):
    """Does what the sandbox must forbid. True if it was refused."""
    start = time.monotonic()
    try:
        act()
    except TimeoutError:
        say("DONE", f"{what}: nothing refused it, only nobody answered")
        return False
    except OSError as error:
        took = (time.monotonic() - start) * 1000
        say("refused", f"{what}: {error.strerror} ({took:.1f} ms)")
        return True
    say("DONE", f"{what}: nothing stopped it")
    return False


def scribble():
    """Makes a new file, and takes it away should that work: an escape that succeeds does no harm either."""
    path = Path("/etc/written-by-the-agent")
    path.touch(exist_ok=False)
    path.unlink()


def escape(canary):
    """Two things that no job may: to touch what is not its own, and to reach the network."""
    # 192.0.2.1 is reserved for documentation (RFC 5737): where a packet does leave, it reaches nobody.
    outside = ("192.0.2.1", 443)
    return all(
        [
            attempt("read a file of the host", lambda: Path(canary).read_bytes()),
            attempt("write a file into /etc", scribble),
            attempt("connect to 192.0.2.1:443", lambda: socket.create_connection(outside, timeout=5).close()),
        ]
    )


def report(contained):
    OUT.mkdir(exist_ok=True)
    lines = ["# Roman numerals: what the agent did", ""]
    lines += [f"- **{step}** {text}" for step, text in diary]
    lines += ["", "The sandbox held." if contained else "THE SANDBOX DID NOT HOLD.", ""]
    lines += ["```python", (JOB / "roman.py").read_text().rstrip(), "```", ""]
    (OUT / "report.md").write_text("\n".join(lines))
    print("  leave   /job/out/report.md", flush=True)


def main():
    canary = os.environ.get("HOST_CANARY")
    if canary is None:
        raise SystemExit("this agent is made for a sandbox and expects HOST_CANARY: start examples/first-agent/run")
    who = os.uname()
    print(f"agent: uid {os.getuid()}, process {os.getpid()}, host \"{who.nodename}\", Linux {who.release}\n")
    say("plan", "write roman.py and its tests, test, repair until they pass")
    write("roman.py", PROGRAM)
    write("test_roman.py", TESTS)
    for _ in range(3):
        failure = run_tests()
        if failure is None:
            break
        repair(*failure)
    else:
        raise SystemExit("three repairs and the tests still fail")
    print()
    say("plan", "try what a sandbox must refuse")
    contained = escape(canary)
    report(contained)
    return 0 if contained else 1


if __name__ == "__main__":
    sys.exit(main())
