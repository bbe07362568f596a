"""The script mitmproxy loads: `mitmdump --mode reverse:$OLLAMA_ENDPOINT -s addons/auth.py`.

Everything is in the package beside it, so this file never changes: a reload of it is harmless.
"""

from ollama_auth.addon import OllamaAuth

addons = [OllamaAuth()]
