"""The size of a prompt and the cap on its answer, read from the body of a request. Pure, incremental, little memory.

Ollama says how many tokens a prompt had at the end of an answer. This is for the time before that, and for requests
whose client leaves earlier. A picture counts as IMAGE_TOKENS, whatever its bytes are: models scale it to a size of
their own, and make a few hundred to a few thousand tokens of it. So does a body that is not JSON: an audio file.
"""

from .json_scanner import TEXT, Scanner, Wanted
from .usage import BYTES_PER_TOKEN, MAX_DIGITS

IMAGE_TOKENS = 1000
"""The most common models make 256 to 1,600 tokens of a picture."""
UNREAD = 16 * 1024
"""Bytes that are kept unread: most prompts are shorter, and most are never read here."""

# The members that hold pictures, sound and files in base64, in the dialects of Ollama, OpenAI and Anthropic.
_PART: Wanted = {
    b"image_url": {b"url": TEXT, b"": TEXT},
    b"source": {b"data": TEXT},
    b"input_audio": {b"data": TEXT},
    b"file": {b"file_data": TEXT},
    b"file_data": TEXT,
}
_MESSAGE: Wanted = {**_PART, b"images": TEXT, b"content": {**_PART, b"content": _PART}}
_MEDIA: Wanted = {b"images": TEXT, b"messages": _MESSAGE, b"input": _MESSAGE}

# What limits the length of an answer; "asked" is what Ollama ignored when this was written.
_NATIVE: Wanted = {**_MEDIA, b"options": {b"num_predict": "cap"}}
_RESPONSES: Wanted = {**_MEDIA, b"max_output_tokens": "cap"}
_OTHERS: Wanted = {**_MEDIA, b"max_tokens": "cap", b"max_completion_tokens": "asked"}


class Prompt:
    """Reads the body of one request, when it is asked about it."""

    def __init__(self, path: bytes) -> None:
        """`path` is the decoded path of the request."""
        responses = path == b"/v1/responses"
        self._body = _Body(_NATIVE if path.startswith(b"/api/") else _RESPONSES if responses else _OTHERS)
        self._unread: list[bytes] = []
        self._waiting = 0
        self._size = 0
        self._is_json: bool | None = None

    def add(self, data: bytes) -> None:
        """Take the next bytes of the body."""
        self._unread.append(data)
        self._waiting += len(data)
        if self._waiting > UNREAD:
            self._read()

    def _read(self) -> None:
        data = b"".join(self._unread)
        self._unread, self._waiting = [], 0
        self._size += len(data)
        if self._is_json is None and (start := data.lstrip()[:1]):
            self._is_json = start == b"{"
        if self._is_json:
            self._body.feed(data)

    @property
    def tokens(self) -> int:
        """The estimate for what was read; 0 as long as Ollama could not begin, because the object has not ended."""
        self._read()
        if not self._is_json:
            return min(self._size // BYTES_PER_TOKEN, IMAGE_TOKENS)
        if not self._body.closed:
            return 0
        return (self._size - self._body.text) // BYTES_PER_TOKEN + self._body.quotes // 2 * IMAGE_TOKENS

    def most_of_answer(self, usual: int) -> int:
        """The tokens of the longest answer that it asks for; `usual` where it names none that Ollama minds."""
        self._read()
        cap = self._body.number("cap")
        return cap if cap is not None else max(usual, self._body.number("asked") or 0)


class _Body(Scanner):
    """Reads names without regard to case, as Go does."""

    def _scalar(self, token: bytes) -> bool:
        counts = super()._scalar(token)
        self._name = self._name and self._name.lower()
        return counts

    def number(self, key: str) -> int | None:
        """A number of at least 1."""
        raw = self.found.get(key, b"")
        return int(raw) or None if raw.isdigit() and len(raw) <= MAX_DIGITS else None
