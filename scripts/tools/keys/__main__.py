"""scripts/keys: see arguments.py."""

import json
import sys
from collections.abc import Sequence

from ollama_auth.auth import keys_file

from ..terminal import ToolError, prepare_output, say
from .arguments import parse
from .commands import Result


def main() -> int:
    """Run one command. Returns the exit status."""
    arguments = parse(sys.argv[1:])
    try:
        result: Result = arguments.run(arguments)
    except keys_file.KeysFileError as error:
        faults = error.faults
    except ToolError as error:
        faults = (str(error),)
    except KeyboardInterrupt:
        return 130
    else:
        output(arguments.json, result.facts, result.text, result.notes)
        return result.status
    output(arguments.json, {"faults": faults}, "", faults)
    return 1


def output(as_json: bool, facts: object, text: str, notes: Sequence[str]) -> None:
    """Print the facts as JSON, or the text and the notes."""
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    if text:
        print(text)
    for note in notes:
        say(note)


if __name__ == "__main__":
    prepare_output()
    sys.exit(main())
