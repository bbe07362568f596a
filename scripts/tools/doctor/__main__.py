"""Usage: scripts/doctor [--json] [arguments of scripts/serve]

Looks for what would make the gate useless or keep it from working, with what scripts/serve would start it with: is
Ollama reachable around it, are files readable by others, is the key strong, is the certificate good, are versions
current, are clocks right, does the endpoint answer, is the gate's own port free or a gate's.

It asks the endpoint for its version, and the gate's own address whether it wants a key. It contacts nobody else, sends
no key, and changes nothing. Exit status: 0 where nothing is bad, 1 where something is, 2 for arguments it can't use.
"""

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from .. import serve
from .answers import gate, ollama
from .around import around
from .certificate import certificates
from .findings import Finding, Level, Patient, bad, examine
from .secrets import credentials, files
from .versions import versions

CHECKS: tuple[Callable[[Patient], Iterator[Finding]], ...] = (
    versions,
    credentials,
    files,
    certificates,
    ollama,
    around,
    gate,
)


def findings(patient: Patient) -> Iterator[Finding]:
    """What all checks find; one that fails keeps no other from being made."""
    for check in CHECKS:
        try:
            yield from check(patient)
        except Exception as fault:
            yield bad(check.__name__, f"could not be checked ({type(fault).__name__})", "look at it yourself")


def told(found: Sequence[Finding]) -> str:
    """For people: what is bad comes last, where it is seen."""
    order = list(Level)
    lines = []
    for finding in sorted(found, key=lambda finding: order.index(finding.level)):
        lines.append(f"{finding.level:4}  {finding.where}: {finding.what}")
        lines += [f"      {finding.next}"] if finding.next else []
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        patient = examine([argument for argument in arguments if argument != "--json"])
    except serve.Problem as problem:
        print(f"ollama-auth: {problem}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"ollama-auth: {error.filename or 'this machine'}: {error.strerror}", file=sys.stderr)
        return 2
    found = list(findings(patient))
    sick = any(finding.level is Level.BAD for finding in found)
    if "--json" in arguments:
        print(json.dumps({"bad": sick, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        print(told(found))
    return int(sick)


if __name__ == "__main__":
    if sys.platform != "win32":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Whoever reads may stop in the middle.
    sys.exit(main(sys.argv[1:]))
