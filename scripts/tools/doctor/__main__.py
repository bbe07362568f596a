"""Usage: scripts/doctor [--json] [arguments of scripts/serve]

Checks the gate that scripts/serve would start with the same arguments, for ways around it and for configuration errors:
whether others can reach Ollama directly or read or change files, whether the key is strong, the certificate valid, the
versions current, the clocks right, the endpoint up, and whether the gate's own port is free or a gate's.

It asks the endpoint for its version, and the gate's own address whether it requires a key. It contacts nothing else,
sends no key and changes nothing. Exit status: 0 if no finding is bad, 1 if one is, 2 if it can't use its arguments.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from ..terminal import ToolError, prepare_output, say, shown
from .certificate import certificates
from .credentials import credentials, files
from .exposure import exposure
from .findings import Finding, Level, bad
from .probes import gate, ollama
from .target import Target, read_target
from .versions import versions

CHECKS: tuple[Callable[[Target], Iterator[Finding]], ...] = (
    versions,
    credentials,
    files,
    certificates,
    ollama,
    exposure,
    gate,
)


def examine(target: Target) -> Iterator[Finding]:
    """Make all checks. An error in one becomes a finding, and the others are still made."""
    for check in CHECKS:
        try:
            yield from check(target)
        except Exception as error:
            yield bad(check.__name__, f"could not be checked ({type(error).__name__})", "look at it yourself")


def report(found: Sequence[Finding]) -> str:
    """The findings as text. The worst come last, where a terminal shows them."""
    order = list(Level)
    lines = []
    for finding in sorted(found, key=lambda finding: order.index(finding.level)):
        lines.append(f"{finding.level:4}  {finding.where}: {shown(finding.what)}")
        lines += [f"      {shown(finding.next)}"] if finding.next else []
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    try:
        target = read_target([argument for argument in arguments if argument != "--json"])
    except ToolError as error:
        say(str(error))
        return 2
    except OSError as error:
        say(f"{error.filename or 'this machine'}: {error.strerror}")
        return 2
    found = list(examine(target))
    any_bad = any(finding.level is Level.BAD for finding in found)
    if "--json" in arguments:
        print(json.dumps({"bad": any_bad, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        print(report(found))
    return int(any_bad)


if __name__ == "__main__":
    prepare_output()
    sys.exit(main(sys.argv[1:]))
