"""Who hears of a hook. mitmproxy asks each of some forty addons at each hook, and by default none of them does anything
at those of a request: that was more than half of what a request cost.

`HookDispatcher` asks only those that have a method for it, in the same order and with the same consequences, and can
tell beforehand that nobody would do anything: then the edge need not call at all. Nothing is taken out of mitmproxy: an
option that is set while it runs, a script that is loaded, an addon that is added are heard from the next request on.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mitmproxy import exceptions
from mitmproxy.addonmanager import AddonManager, safecall, traverse
from mitmproxy.addons import (
    anticache,
    anticomp,
    blocklist,
    disable_h2c,
    dumper,
    maplocal,
    mapremote,
    modifybody,
    modifyheaders,
    onboarding,
    proxyauth,
    save,
    savehar,
    serverplayback,
    stickyauth,
    stickycookie,
    tlsconfig,
    update_alt_svc,
    upstream_auth,
)
from mitmproxy.hooks import Hook
from mitmproxy.log import ALERT, LegacyLogEvents
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)

from ..mitmweb.flows import FlowViews

CONNECTIONS = logging.getLogger("mitmproxy.proxy.server")
LIFECYCLE = ("load", "configure", "running", "done")
"""These change the addons while they are called: left to mitmproxy."""
type FlowHook = HttpRequestHeadersHook | HttpRequestHook | HttpResponseHeadersHook | HttpResponseHook
FLOW_HOOKS = (HttpRequestHeadersHook, HttpRequestHook, HttpResponseHeadersHook, HttpResponseHook)
NAMES = (*(hook.name for hook in FLOW_HOOKS), "update")
"""What is called at them: each, and `update` after it."""


type Idle = Callable[[Any, Any], bool]
"""Of an addon, and the options."""


def always(_: Any, __: Any) -> bool:
    return True


def never(_: Any, __: Any) -> bool:
    return False


IDLE: Mapping[type, Idle] = {
    anticache.AntiCache: lambda _, options: not options.anticache,
    anticomp.AntiComp: lambda _, options: not options.anticomp,
    blocklist.BlockList: lambda addon, _: not addon.items,
    disable_h2c.DisableH2C: always,  # `head` and the headers that are forwarded leave nothing to disable.
    maplocal.MapLocal: lambda addon, _: not addon.replacements,
    mapremote.MapRemote: lambda addon, _: not addon.replacements,
    modifybody.ModifyBody: lambda addon, _: not addon.replacements,
    modifyheaders.ModifyHeaders: lambda addon, _: not addon.replacements,
    # For the host mitm.it, which no request has whose Host we set.
    onboarding.Onboarding: lambda _, options: not (options.onboarding and options.keep_host_header),
    proxyauth.ProxyAuth: lambda addon, _: addon.validator is None,
    save.Save: lambda addon, _: addon.stream is None,
    savehar.SaveHar: lambda _, options: not options.hardump,
    serverplayback.ServerPlayback: lambda addon, _: not addon.flowmap,
    stickyauth.StickyAuth: lambda addon, _: addon.flt is None,
    stickycookie.StickyCookie: lambda addon, _: addon.flt is None,
    tlsconfig.TlsConfig: always,  # It serves the revocation list of certificates that a gate does not make.
    update_alt_svc.UpdateAltSvc: always,  # But see edge.GateStream.is_silent.
    upstream_auth.UpstreamAuth: lambda addon, _: addon.auth is None,
    dumper.Dumper: lambda _, options: options.flow_detail == 0,
    FlowViews: lambda addon, _: not addon.watched(),
}
"""Addons that have methods for the hooks of a request: when these do nothing."""


class HookDispatcher:
    """The addons of a mitmproxy, by what they have methods for."""

    def __init__(self, addons: AddonManager, options: Any) -> None:
        self.addons = addons
        self.options = options
        self._whole = addons.trigger_event
        self._chain: list[Any] = []
        self._hearing: dict[tuple[str, ...], Listeners] = {}
        self.guarded: Any = None
        """Is told by its `done` when it is not in the chain, however it got out of it, and puts itself back."""

    def install(self) -> None:
        """From here on mitmproxy asks only those who listen."""
        self.addons.trigger_event = self.trigger_event  # type: ignore[method-assign]

    def hearing(self, *names: str) -> "Listeners":
        """Those of the chain who may have a method of such a name, themselves or one of their sub-addons."""
        if self.addons.chain != self._chain:
            if self.guarded and not any(addon is self.guarded for addon in self.addons.chain):
                self.guarded.done()
            self._chain = list(self.addons.chain)
            self._hearing.clear()
        found = self._hearing.get(names)
        if found is None:
            found = self._hearing[names] = hearing(self._chain, names)
        return found

    async def trigger_event(self, event: Hook) -> None:
        """As AddonManager.trigger_event."""
        if event.name in LIFECYCLE:
            await self._whole(event)
            return
        for addon in self.hearing(event.name).all:
            try:
                await self.addons.invoke_addon(addon, event)
            except exceptions.AddonHalt:
                return
            except Exception:
                with safecall():
                    raise

    def set_log_level(self) -> None:
        """mitmproxy's lines about connections, several a request, are made only where somebody shows them."""
        root = logging.getLogger()
        shown = any(one.level <= logging.INFO and not isinstance(one, LegacyLogEvents) for one in root.handlers)
        level = logging.NOTSET if shown or self._acts("add_log") else ALERT
        if CONNECTIONS.level != level:
            CONNECTIONS.setLevel(level)

    def silent(self) -> bool:
        """Nobody would do anything at a hook of a request that begins now."""
        return not self._acts(*NAMES)

    def _acts(self, *names: str) -> bool:
        """Somebody would do something at one of these hooks."""
        found, options = self.hearing(*names), self.options
        return any(not idle(addon, options) for addon, idle in found.known) or any(
            not IDLE.get(type(one), never)(one, options)
            for one in traverse(found.others)
            if any(hasattr(one, name) for name in names)
        )


@dataclass(frozen=True, slots=True)
class Listeners:
    """Addons in their order."""

    all: list[Any]
    known: list[tuple[Any, Idle]]
    """Of them: mitmproxy's own, whose methods do not come and go, and when they do nothing."""
    others: list[Any]


def hearing(chain: list[Any], names: tuple[str, ...]) -> Listeners:
    """Those of the chain who may have a method of such a name."""
    found = [addon for addon in chain if any(may_hear(addon, name) for name in names)]
    known = [addon for addon in found if is_own(addon)]
    idle = [(addon, IDLE.get(type(addon), never)) for addon in known]
    return Listeners(found, idle, [addon for addon in found if addon not in known])


def is_own(addon: Any) -> bool:
    """It is one of mitmproxy's, without sub-addons."""
    return type(addon).__module__.startswith("mitmproxy.") and not hasattr(addon, "addons")


def may_hear(addon: Any, name: str) -> bool:
    """Not if it is one of mitmproxy's own, whose methods are those of its class."""
    return not is_own(addon) or hasattr(type(addon), name) or name in vars(addon)
