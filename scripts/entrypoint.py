"""The container's program: becomes mitmdump with the gate, which refuses to start where no key is set."""

import os
import sys

from serve import Problem, become, endpoint, gate_command, split

if __name__ == "__main__":
    try:
        command = gate_command(endpoint(os.environ.get("OLLAMA_ENDPOINT")), split(sys.argv[1:]))
    except Problem as problem:
        sys.exit(f"ollama-auth: {problem}")
    sys.exit(become(command, os.environ))
