"""Hook dispatch: replace `AddonManager.trigger_event` so that only addons with a method for a hook are called.

mitmproxy asks each of some forty addons at each hook, and by default none of them does anything at those of a request;
that took more than half of the time of a request. `HookDispatcher` calls only the addons that have a method for the
hook, in the same order and with the same error handling. It can also tell in advance that no addon would do anything,
so that the layers need not call a hook at all. Nothing is removed from mitmproxy: an option that is set, a script that
is loaded or an addon that is added at run time takes effect with the next request.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from mitmproxy import addons, exceptions
from mitmproxy.addonmanager import AddonManager, safecall, traverse
from mitmproxy.addons import dumper
from mitmproxy.hooks import Hook
from mitmproxy.log import ALERT, LegacyLogEvents
from mitmproxy.proxy.layers.http._hooks import (
    HttpRequestHeadersHook,
    HttpRequestHook,
    HttpResponseHeadersHook,
    HttpResponseHook,
)

from ..mitmweb.flows import FlowViews

CONNECTION_LOGGER = logging.getLogger("mitmproxy.proxy.server")
type FlowHook = HttpRequestHeadersHook | HttpRequestHook | HttpResponseHeadersHook | HttpResponseHook
FLOW_HOOKS = (HttpRequestHeadersHook, HttpRequestHook, HttpResponseHeadersHook, HttpResponseHook)
REQUEST_HOOK_NAMES = (*(hook.name for hook in FLOW_HOOKS), "update")
"""The hooks of a request; mitmproxy calls `update` after each of the others."""

type IdleTest = Callable[[Any, Any], bool]
"""(addon, options) -> the addon would do nothing at any hook of a request."""
IDLE_WHEN: Mapping[type, IdleTest] = {
    addons.anticache.AntiCache: lambda _, options: not options.anticache,
    addons.anticomp.AntiComp: lambda _, options: not options.anticomp,
    addons.block.Block: lambda _, options: not (options.block_global or options.block_private),
    addons.blocklist.BlockList: lambda addon, _: not addon.items,
    # http/head.py and the allow-list of header fields leave nothing to disable.
    addons.disable_h2c.DisableH2C: lambda *_: True,
    addons.maplocal.MapLocal: lambda addon, _: not addon.replacements,
    addons.mapremote.MapRemote: lambda addon, _: not addon.replacements,
    addons.modifybody.ModifyBody: lambda addon, _: not addon.replacements,
    addons.modifyheaders.ModifyHeaders: lambda addon, _: not addon.replacements,
    # It serves the host mitm.it; no request names that unless the client's Host is kept.
    addons.onboarding.Onboarding: lambda _, options: not (options.onboarding and options.keep_host_header),
    addons.proxyauth.ProxyAuth: lambda addon, _: addon.validator is None,
    addons.save.Save: lambda addon, _: addon.stream is None,
    addons.savehar.SaveHar: lambda _, options: not options.hardump,
    addons.serverplayback.ServerPlayback: lambda addon, _: not addon.flowmap,
    addons.stickyauth.StickyAuth: lambda addon, _: addon.flt is None,
    addons.stickycookie.StickyCookie: lambda addon, _: addon.flt is None,
    # It serves the revocation list of certificates which a gateway does not issue.
    addons.tlsconfig.TlsConfig: lambda *_: True,
    # GateStream.is_idle makes an exception for responses with Alt-Svc.
    addons.update_alt_svc.UpdateAltSvc: lambda *_: True,
    addons.upstream_auth.UpstreamAuth: lambda addon, _: addon.auth is None,
    dumper.Dumper: lambda _, options: options.flow_detail == 0,
    FlowViews: lambda addon, _: not addon.watched(),
}
"""When an addon that has methods for the hooks of a request does nothing at them; addons not listed never are idle."""


class HookDispatcher:
    """The addons of a mitmproxy by the hooks they have methods for."""

    def __init__(self, addons: AddonManager, options: Any) -> None:
        self.addons = addons
        self.options = options
        self._original_trigger_event = addons.trigger_event
        self._chain: list[Any] = []
        self._listeners: dict[tuple[str, ...], Listeners] = {}
        self.guarded: Any = None
        """An addon whose `done` is called when it is found missing from the chain; it re-inserts itself."""

    def install(self) -> None:
        """Let mitmproxy call hooks through this dispatcher."""
        self.addons.trigger_event = self.trigger_event  # type: ignore[method-assign]

    def listeners(self, *names: str) -> "Listeners":
        """Return the addons that may have a method for one of these hooks, themselves or in a sub-addon."""
        if self.addons.chain != self._chain:
            if self.guarded and not any(addon is self.guarded for addon in self.addons.chain):
                self.guarded.done()
            self._chain = list(self.addons.chain)
            self._listeners.clear()
        if names not in self._listeners:
            self._listeners[names] = Listeners(self._chain, names)
        return self._listeners[names]

    async def trigger_event(self, event: Hook) -> None:
        """Call a hook as AddonManager.trigger_event does."""
        if event.name in ("load", "configure", "running", "done"):  # These may change the addons.
            await self._original_trigger_event(event)
            return
        for addon in self.listeners(event.name).all:
            try:
                await self.addons.invoke_addon(addon, event)
            except exceptions.AddonHalt:
                return
            except Exception:
                with safecall():
                    raise

    def set_log_level(self) -> None:
        """Let mitmproxy format its log lines about connections, several a request, only if something shows them."""
        root = logging.getLogger()
        shown = any(one.level <= logging.INFO and not isinstance(one, LegacyLogEvents) for one in root.handlers)
        level = logging.NOTSET if shown or self._any_active("add_log") else ALERT
        if CONNECTION_LOGGER.level != level:
            CONNECTION_LOGGER.setLevel(level)

    def connections_shown(self) -> bool:
        """Tell whether an addon other than the guarded one, or the log, wants to know of each client connection."""
        return CONNECTION_LOGGER.level == logging.NOTSET or self._any_active("client_connected")

    def request_hooks_idle(self) -> bool:
        """Tell whether no addon would do anything at the hooks of a request that begins now."""
        return not self._any_active(*REQUEST_HOOK_NAMES)

    def _any_active(self, *names: str) -> bool:
        """Tell whether an addon would do something at one of these hooks."""
        found, options = self.listeners(*names), self.options
        for addon, idle in found.builtin:
            if not idle(addon, options):
                return True
        for one in found.all_others():
            if one is self.guarded:
                continue
            for name in names:
                if hasattr(one, name):
                    if type(one) not in IDLE_WHEN or not IDLE_WHEN[type(one)](one, options):
                        return True
                    break
        return False


class Listeners:
    """The addons that may have a method for one of some hooks, in their order: all, and the same in two groups."""

    def __init__(self, chain: list[Any], names: tuple[str, ...]) -> None:
        self.all = [one for one in chain if not is_builtin(one) or any(hasattr(one, name) for name in names)]
        self.builtin = [(one, IDLE_WHEN.get(type(one), lambda *_: False)) for one in self.all if is_builtin(one)]
        """Those whose methods do not change at run time, with their tests."""
        self.others = [one for one in self.all if not is_builtin(one)]
        """Scripts and addons with sub-addons, whose methods may change at run time."""
        self._sub_addons: list[tuple[Any, list[Any]]] = []
        self._all_others: list[Any] = []

    def all_others(self) -> list[Any]:
        """Return these with all their sub-addons, which are looked at again only if some have changed."""
        for one, addons_then in self._sub_addons:
            if one.addons != addons_then:
                break
        else:
            if self._all_others:
                return self._all_others
        self._all_others = list(traverse(self.others))
        self._sub_addons = [(one, list(one.addons)) for one in self._all_others if hasattr(one, "addons")]
        return self._all_others


def is_builtin(addon: Any) -> bool:
    """Tell whether this is an addon of mitmproxy's own without sub-addons."""
    return type(addon).__module__.startswith("mitmproxy.") and not hasattr(addon, "addons")
