"""python snippets.py [FILE...]: run each file in this one process, and print what each printed or raised, as JSON.

The libraries that they import take seconds to load, once. OLLAMA_API_KEY is replaced by what `key=` before them says.
"""

import contextlib
import io
import json
import os
import sys
from pathlib import Path

results: list[str] = []
for word in sys.argv[1:]:
    if word.startswith("key="):
        os.environ["OLLAMA_API_KEY"] = word.removeprefix("key=")
        continue
    with contextlib.redirect_stdout(io.StringIO()) as output:
        try:
            exec(compile(Path(word).read_text(), word, "exec"), {"__name__": "__main__"})  # noqa: S102
        except Exception as error:
            print(f"{type(error).__name__}: {error}")
    results.append(output.getvalue())
print(json.dumps(results))
