"""What is in force: the settings, and the authorizer, limiter and logs made of them.

New settings are put in force whole or not at all, also while requests run: by a change of options, of the keys file
(looked at every WATCH seconds), or by SIGHUP, which opens the logs anew as well.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from mitmproxy.log import ALERT
from mitmproxy.proxy.mode_specs import ProxyMode

from . import clock, settings
from .auth import watched_file
from .auth.keys import KeyRing
from .auth.limits import RENEW, Limiter, counted_here, limited
from .auth.periods import Calendar
from .auth.shared_limits import LimitsError, StorageUnavailableError, check_storage
from .auth.throttle import ReplayCache, Throttle
from .authorizer import Authorizer
from .settings import Settings, SettingsError
from .telemetry import workers
from .telemetry.access_log import AccessLog
from .telemetry.audit_log import AuditLog
from .telemetry.ledger import Ledger
from .telemetry.monitor import ListenError, Monitor

logger = logging.getLogger(__name__)

MAX_ERROR_LINES = 20
"""Of the log, about one keys file."""
ANYWHERE = ("0.0.0.0", "::")  # noqa: S104, not listened on here
WATCH = 0.5
"""Seconds between two looks at the keys file."""
SAY_AGAIN = 60.0
"""Seconds between two lines that say that it was replaced outside."""


class ActiveConfig:
    """Nothing is in force before the first settings were taken: `settings` and `authorizer` are None."""

    def __init__(self, emit: Callable[[], Callable[[str], None] | None], monitor: Monitor) -> None:
        """`emit` returns what takes readable lines of the access log in place of standard output, or None."""
        self.settings: Settings | None = None
        self.authorizer: Authorizer | None = None
        self.limiter: Limiter | None = None
        self._replaced: list[Limiter] = []
        self.log = AccessLog()
        self.audit: AuditLog | None = None
        self.ledger: Ledger | None = None
        self.monitor = monitor
        self._emit = emit
        self._throttle, self._replays = Throttle(), ReplayCache()
        self._hidden: dict[str, bytes] = {}
        """Digests of keys that were given as an option, and URLs with a password, by what the option shows now."""
        self._reading = asyncio.Lock()
        self._read: object = None
        """The stamp of the keys file when it was read last."""
        self._mounted: tuple[str | None, str | None] = (None, None)
        """The keys file, and what was mounted there when it was looked at first."""
        self._replaced_at: float | None = None
        self._said_at: float | None = None
        """When the file was seen to be replaced outside, and when that was said last, by the gate's clock."""

    def configure(self, options: Any) -> None:
        """Read mitmproxy's options and the environment, and put them in force, whole or not at all.

        A key among the options is hidden there, once it is in force. Raises SettingsError; then the old settings
        still are in force. mitmproxy may take the options back because another addon refused them; it then calls
        this again with the old ones, in which the old mask stands for the old key.
        """
        new = settings.read(options, os.environ, self._hidden, self.settings)
        if new.metrics_listen:
            check_apart(new.metrics_listen, options)
        self.take(new)
        key = options.ollama_api_key
        if key is not None and not settings.is_mask(key):
            mask = settings.MASK if not self._hidden else f"{settings.MASK} {len(self._hidden) + 1}"
            self._hidden[mask] = settings.read_key(options, os.environ)
            options.update(ollama_api_key=mask)  # This calls us again, and changes nothing then.
        url = options.ollama_limits_storage
        if url and url not in self._hidden and (masked := settings.masked_url(url)):
            shown = f"{masked} {len(self._hidden) + 1}"
            self._hidden[shown] = url.encode()
            options.update(ollama_limits_storage=shown)

    def take(self, new: Settings) -> None:
        """Put settings in force. Raises SettingsError; then the old ones still are."""
        old = self.settings
        with ExitStack() as opened:  # Closed again where something that comes after can't be had.
            limiter = self._limiter_for(new)
            log, audit, ledger = self.log, self.audit, self.ledger
            if old is None or old.access_log != new.access_log:
                log = _open("ollama_access_log", new.access_log, lambda: AccessLog(new.access_log, self._emit()))
                opened.callback(log.close)
            if old is None or audit_of(old) != audit_of(new):
                audit = None
                if path := new.audit_log:
                    audit = _open("ollama_audit_log", path, lambda: AuditLog(path, new.audit_size, new.audit_keep))
                    opened.callback(audit.close)
            if ledger is None or old is None or old.usage_db != new.usage_db:
                ledger = _open("ollama_usage_db", new.usage_db, lambda: Ledger(new.usage_db))
                opened.callback(ledger.close)
            try:
                self.monitor.listen(new.metrics_listen)
            except ListenError as error:
                raise SettingsError(f"ollama_metrics_listen: {error}") from error
            opened.pop_all()
        for used, fresh in ((self.log, log), (self.audit, audit), (self.ledger, ledger)):
            if used and used is not fresh:
                used.close()
        if audit is not self.audit and new.audit_log:
            logger.warning("ollama_auth: ollama_audit_log: prompts and responses are written to %s", new.audit_log)
        self.log, self.audit, self.ledger = log, audit, ledger
        ledger.days = new.usage_days
        if self.limiter and self.limiter is not limiter:
            self._replaced.append(self.limiter)
        if limiter:
            limiter.calendar, limiter.principals = Calendar(new.timezone), new.ring.principals
        self.settings, self.limiter = new, limiter
        self._throttle.most = new.max_wrong_keys
        self.authorizer = Authorizer(new, self._throttle, self._replays)
        for warning in new.warnings:
            if old is None or warning not in old.warnings:
                logger.warning("ollama_auth: %s", warning)

    def _limiter_for(self, new: Settings) -> Limiter | None:
        url, old, principals = new.limits_storage, self.settings, new.ring.principals.values()
        if old and self.limiter and (old.limits_storage, old.limits_name) == (url, new.limits_name):
            return self.limiter
        if url is None and not any(map(limited, principals)):
            return None
        alone = any(map(counted_here, principals)) or new.usage_db is None
        if url is None and alone and workers.count(os.environ) > 1:
            raise SettingsError(
                "the keys have limits, which each of several workers would count for itself: "
                "set ollama_limits_storage=redis://HOST:6379, or run one worker"
            )
        try:
            if url and (why := check_storage(url, new.limits_name)):
                logger.warning("ollama_auth: ollama_limits_storage does not answer now (%s)", why)
            return Limiter(self._shares, Calendar(new.timezone), url, new.limits_name)
        except LimitsError as error:
            raise SettingsError(str(error)) from error

    def _shares(self, key: str, since: float, until: float) -> Mapping[int, int]:
        """The tokens that a key used in [since, until), by the process that counted them."""
        return self.ledger.shares(key, since, until) if self.ledger else {}

    def close(self) -> None:
        """Write what the logs have left to write, and stop the status server."""
        for part in (self.log, self.audit, self.ledger, self.monitor):
            if part:
                part.close()

    # The keys file.

    async def watch(self, options: Any) -> None:
        """Reload the keys when their file was changed, for ever."""
        seen = self._read = self._stamp()
        self._was_replaced()  # It notes what is mounted now.
        while True:
            last, seen = seen, self._stamp()
            if seen != self._read and self._was_replaced():
                self._distrust_keys()
            elif seen == last != self._read:  # Changed, and not being written now.
                await self.reload(options)
            await asyncio.sleep(WATCH)

    def _was_replaced(self) -> bool:
        """Whether the keys file is mounted by itself, and was replaced outside of this file system."""
        path = self.settings.keys_file if self.settings else None
        if path != self._mounted[0]:
            self._mounted = path, watched_file.mounted(path) if path else None
        return path is not None and watched_file.was_replaced(path, self._mounted[1])

    def _distrust_keys(self) -> None:
        """Say again and again that the file was replaced, and after a time take its keys out of force."""
        if (now := self.settings) is None:
            return
        self._replaced_at = clock.monotonic() if self._replaced_at is None else self._replaced_at
        left = self._replaced_at + now.replaced_keys_timeout - clock.monotonic()
        if left <= 0 and len(kept := KeyRing(now.ring.keys_of("default"))) < len(now.ring):
            self.take(replace(now, ring=kept))
            self._said_at = None
        if self._said_at is None or clock.monotonic() >= self._said_at + SAY_AGAIN:
            self._said_at = clock.monotonic()
            what = f"its keys are accepted for {left:.0f} s more" if left > 0 else "its keys are denied"
            logger.error("ollama_auth: %s: %s: %s", now.keys_file, what, watched_file.REPLACED)

    async def renew(self) -> None:
        """Renew the leases of running requests, for ever: a storage may forget them while it is unavailable.

        A limiter that was replaced is closed once its last lease was given back.
        """
        while True:
            await asyncio.sleep(RENEW)
            for limiter in filter(None, [self.limiter, *self._replaced]):
                with suppress(StorageUnavailableError):
                    await limiter.renew()
                    if limiter in self._replaced and not limiter.holds_leases:
                        self._replaced.remove(limiter)
                        await limiter.close()

    def _stamp(self) -> object:
        path = self.settings.keys_file if self.settings else None
        return path, watched_file.stamp(path) if path else None

    async def hang_up(self, options: Any) -> None:
        """Handle SIGHUP: open the logs again, and reload the keys."""
        self.log.reopen()
        if self.audit:
            self.audit.reopen()
        await self.reload(options)

    async def reload(self, options: Any) -> None:
        """Put the keys of the file in force; keep the old ones and log why, if they are faulty."""
        if self._was_replaced():
            self._read = self._said_at = None
            self._distrust_keys()
            return
        self._read, self._replaced_at, self._said_at = self._stamp(), None, None
        if self.settings is None or self.settings.keys_file is None:
            return
        try:
            async with self._reading:  # An older reading must not undo a newer one.
                ring = await self._read_again(options, self.settings)
        except SettingsError as error:
            say(error, "the keys stay as they were: ")
        except Exception as error:
            logger.error("ollama_auth: the keys stay as they were: %s", type(error).__name__)
        else:
            logger.log(ALERT, "ollama_auth: the keys file was read again: %d keys", len(ring))

    async def _read_again(self, options: Any, before: Settings) -> KeyRing:
        # In a thread: 10,000 keys take half a second.
        ring, warnings = await asyncio.to_thread(settings.read_keys, options, os.environ, self._hidden, before)
        if self.settings and self.settings is not before:  # Others are in force by now.
            return await self._read_again(options, self.settings)
        self.take(replace(before, ring=ring, warnings=warnings))
        return ring


def audit_of(one: Settings) -> tuple[object, ...]:
    """What an open audit log was made of."""
    return one.audit_log, one.audit_size, one.audit_keep


def _open[T](option: str, path: str | None, make: Callable[[], T]) -> T:
    """Open a log. Raises SettingsError."""
    try:
        return make()
    except OSError as error:
        raise SettingsError(
            f"{option}: can't write {path!r} ({error.strerror}); name a file that can be written"
        ) from error


def check_apart(metrics: tuple[str, int], options: Any) -> None:
    """Refuse one port for the gate and the metrics: workers share ports, so each would get requests of the other.

    Raises SettingsError.
    """
    mode = ProxyMode.parse(options.mode[0])
    hosts = {host or ANYWHERE[0] for host in (metrics[0], mode.listen_host(options.listen_host))}
    if metrics[1] == mode.listen_port(options.listen_port) and (len(hosts) == 1 or hosts & {*ANYWHERE, "localhost"}):
        raise SettingsError(f"ollama_metrics_listen: port {metrics[1]} is the gate's own: choose another")


def say(error: SettingsError, what: str = "") -> None:
    """Log an error of up to MAX_ERROR_LINES lines."""
    for line in str(error).splitlines()[:MAX_ERROR_LINES]:
        logger.error("ollama_auth: %s%s", what, line)
