"""Pins of the internals of mitmproxy, h11, h2 and asyncio that proxy/ depends on, and which of our code uses each.

A release that changes one of them fails here before it can open the gate. Read the change (`git diff` between the two
releases), review our code in the right column, then add the new digests to the table:
`PYTHONPATH=addons python tests/unit/proxy/test_internals.py`.
A line keeps the digests of all releases that pyproject.toml allows.
"""

import asyncio
import hashlib
import inspect
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module, metadata
from operator import attrgetter
from pathlib import Path
from pkgutil import walk_packages
from types import FunctionType
from typing import Any, NamedTuple

import pytest

import ollama_auth
from tests.harness.cases import each_of

TABLE = """
mitmproxy.proxy.layers.http
    c98f7f715cef HttpStream.state_stream_request_body           fast_path.LayerFastPath.open
    3fb6320300d3 HttpStream.state_stream_response_body          fast_path.LayerFastPath.open
    1ece202e595d HttpLayer.__init__                             layer.GateLayer
    6ba31883cc7a HttpLayer._handle_event                        layer.GateLayer._dispatch
    1095f6e1581d HttpLayer.event_to_child                       layer.GateLayer
    654959c6e745 HttpLayer.make_stream                          layer.GateLayer.make_stream
    1aa1c63e3175 HttpLayer.get_connection                       layer.GateLayer.get_connection
    deed6282affc HttpLayer.register_connection                  layer.GateLayer.get_connection
    bc1cae775a49 HttpClient._handle_event                       upstream.Upstream._handle_event
    705fed26f72e GetHttpConnection                              layer.GateLayer.get_connection
    9892a5f6b47b HttpStream.__init__                            stream.GateStream
    e3cbfef7310a HttpStream._handle_event                       stream.GateStream._handle_event
    3706d5d5ce01 HttpStream.state_wait_for_request_headers      stream.GateStream._start_upstream
    45459c1bbd8b HttpStream.state_consume_request_body          stream.GateStream._start_upstream
    46f03368a2a5 HttpStream.start_request_stream                stream.GateStream.start_request_stream
    c98f7f715cef HttpStream.state_stream_request_body           stream.GateStream.state_stream_request_body
    10e32e91b294 HttpStream.state_wait_for_response_headers     stream.GateStream.state_wait_for_response_headers
    b0de9e9a5ee2 HttpStream.start_response_stream               stream.GateStream.start_response_stream
    3fb6320300d3 HttpStream.state_stream_response_body          stream.GateStream.state_stream_response_body
    d581bc106152 HttpStream.send_response                       stream.GateStream.send_response
    ad9969744785 HttpStream.flow_done                           stream.GateStream.send_response
    236ca0a7b9fd HttpStream.check_body_size                     settings.check_mitmproxy
    ef0a126eef45 HttpStream.check_invalid                       stream.GateStream.check_invalid
    368cad352d1e HttpStream.check_killed                        stream.GateStream.abandoned
    59fc3b2eeeab HttpStream.handle_protocol_error               stream.GateStream.handle_protocol_error
    ddc7bc72f4d2 HttpStream.make_server_connection              stream.GateStream.make_server_connection
    e7cec257ce91 validate_request                               head.parse_head
mitmproxy.proxy.layers.http._base
    50ea73c6dc3e HttpEvent                                      events.Refuse
    52857cce0a83 ReceiveHttp                                    http1_server.BoundedHttp1Server
mitmproxy.proxy.layers.http._events
    0275818f0142 RequestHeaders                                 events.ParsedRequestHeaders
    1345b2457dd6 ResponseProtocolError                          events.Failure
    b0ab2fe20d6f ErrorCode                                      stream.describe_failure
mitmproxy.proxy.layers.http._http1
    cc218a1337c0 Http1Server.send                               fast_path.LayerFastPath
    35d961e20d48 Http1Client.send                               fast_path.LayerFastPath
    2ac8db3e43ae Http1Connection._handle_event                  http1_server.BoundedHttp1Server._handle_event
    888ce4138382 Http1Connection.start                          http1_server.BoundedHttp1Server._handle_event
    aece271029af Http1Connection.read_body                      http1_messages.Body.read_body
    c99d0494a840 Http1Connection.wait                           http1_server.BoundedHttp1Server._handle_event
    7c8d996749eb Http1Connection.done                           http1_server.BoundedHttp1Server.done
    dc5ed395ce4f Http1Connection.mark_done                      http1_server.BoundedHttp1Server.mark_done
    508efbb58d5d Http1Server.__init__                           http1_server.BoundedHttp1Server
    cc218a1337c0 Http1Server.send                               http1_server.BoundedHttp1Server.send
    3fe0945216bc Http1Server.read_headers                       http1_server.BoundedHttp1Server.read_headers
    94fd7ea388c8 Http1Server.mark_done                          http1_server.BoundedHttp1Server.mark_done
    35d961e20d48 Http1Client.send                               http1_client.BoundedHttp1Client.send
    415454c5fa8b Http1Client.read_headers                       http1_client.BoundedHttp1Client.read_head
    9b076acda459 make_body_reader                               http1_server.BoundedHttp1Server.handle_head
mitmproxy.proxy.layers.http._http2
    1614b5711609 Http2Connection.__init__                       http2.BoundedHttp2Server
    26e8192aca68 Http2Connection.is_closed                      http2.BoundedHttp2Server.stop_reading
    ada9ae25ced6 Http2Connection.is_open_for_us                 http2.BoundedHttp2Server.unanswered
    a7f4a7a71d31,7fc814a8a507 Http2Connection._handle_event     http2.BoundedHttp2Server._handle_event
    f6b6a52b1254 Http2Connection.handle_h2_event                http2.BoundedHttp2Server.handle_h2_event
    461f5e7de9c9 Http2Connection.protocol_error                 http2.BoundedHttp2Server.protocol_error
    44b76ed198e7 Http2Connection.close_connection               http2.BoundedHttp2Server.done
    ba15fa365111 Http2Connection.done                           http2.BoundedHttp2Server.done
    fbaceff7e0df Http2Server.__init__                           http2.BoundedHttp2Server
    7282fa18e70a Http2Server._handle_event                      http2.BoundedHttp2Server._handle_event
    d24a023c678d Http2Server.handle_h2_event                    http2.BoundedHttp2Server.handle_h2_event
    c61b5fbe92c7 format_h2_response_headers                     http2.BoundedHttp2Server.refuse
    464eb8bb2fd7 parse_h2_request_headers                       stream.head_of
mitmproxy.proxy.layers.http._http_h2
    f983b7220f47,c085c1abb1f4 BufferedH2Connection              http2_unsent.UnsentResponses
mitmproxy.proxy.context
    cad9374a0689 Context.fork                                   layer.fork
    7ee4176662ab Context.__init__                               layer.fork
mitmproxy.proxy.layer
    e98dedd896fb Layer                                          stream.GateStream.handle_event
    3cbcbafad282 NextLayer                                      addon.Gate.next_layer
mitmproxy.proxy.layers.modes
    42407c2beaa5 ReverseProxy                                   addon.Gate.next_layer
mitmproxy.addons.next_layer
    d277fef31bbe NextLayer.next_layer                           addon.Gate.next_layer
mitmproxy.proxy.tunnel
    a0a2a31af17d TunnelLayer                                    tls.ClientTls
mitmproxy.proxy.layers.tls
    3878cd7c942a TLSLayer.start_tls                             tls.ClientTls.start_tls
    62d6d57d43dd TLSLayer.tls_interact                          tls.ClientTls.tls_interact
    85c0e6b656c3 TLSLayer.receive_data                          tls.ClientTls.receive_data
    35a29a1b0b0c TLSLayer.send_data                             tls.ClientTls.send_data
    d9b1161f42db TLSLayer.send_close                            tls.ClientTls.send_close
    6cae807276e6 ClientTLSLayer.__init__                        tls.ClientTls
    d0d1ff82ae62 handshake_record_contents                      tls.ClientTls.hello_arrived
    7fda12c4e3ef get_client_hello                               tls.ClientTls.hello_arrived
    a0ee021f92f6 ClientTLSLayer.receive_handshake_data          tls.ClientTls.receive_handshake_data
    04a3a2530293 ClientTLSLayer.on_handshake_error              tls.ClientTls.on_handshake_error
mitmproxy.addons
    7eb18893c70b default_addons                                 settings.check_mitmproxy
mitmproxy.addons.tlsconfig
    41a266755820 alpn_select_callback                           tls.ClientTls.start_tls
mitmproxy.proxy.server
    95c3f93e9824 ConnectionHandler.handle_connection            transport.BulkReader
    706760d6eecf ConnectionHandler.log                          hook_dispatch.HookDispatcher.set_log_level
    41e033f7debf TimeoutWatchdog.register_activity              fast_path.SocketFastPath
    ffb8e6c9e6c6 ConnectionHandler.__init__                     addon.Gate.client_connected
    01f1b7cc991c ConnectionHandler.handle_client                addon.Gate.client_disconnected
    01f1b7cc991c ConnectionHandler.handle_client                teardown.take_apart_at_end
    a2b42657ebe8 ConnectionHandler.server_event                 teardown.take_apart
    5e0b3cbaf7a4 ConnectionHandler.open_connection              client_connection.ClientConnection.check_connects
    95c3f93e9824 ConnectionHandler.handle_connection            transport.close_sockets
    6b5743460456 ConnectionHandler.drain_writers                client_connection.ClientConnection.hold_reading
    6b5743460456 ConnectionHandler.drain_writers                client_connection.ClientConnection.check_connects
    6b5743460456 ConnectionHandler.drain_writers                addon.Gate.server_disconnected
    5e0b3cbaf7a4 ConnectionHandler.open_connection              upstream.OllamaServer
    6b5743460456 ConnectionHandler.drain_writers                transport.BulkReader
    0d1e6b0aa6e4 ConnectionHandler.on_timeout                   client_connection.ClientConnection.close_now
    9ac797016052 ConnectionHandler.hook_task                    transport.close_sockets
    a2b42657ebe8 ConnectionHandler.server_event                 client_connection.ClientConnection.send_event
    c0d10cc05dd6 ConnectionHandler.close_connection             client_connection.ClientConnection.close_now
    f498a46ab1b0 ConnectionIO                                   transport.transport_of
mitmproxy.proxy.mode_servers
    10e340d70b3f ProxyConnectionHandler                         addon.Gate.client_connected
    21eea06f208c ServerInstance.handle_stream                   addon.Gate.client_connected
    d565bfefd6af AsyncioServerInstance                          addon.Gate.drain
    d565bfefd6af AsyncioServerInstance                          listener.Listener.take_over
mitmproxy.addons.proxyserver
    6c950fbed489 Servers                                        addon.Gate.drain
    d79bb91554a8 Proxyserver.register_connection                addon.Gate.client_connected
    1fc787ebda12 Proxyserver.server_connect                     addon.Gate.server_connect
mitmproxy.addonmanager
    bad3d9f88bdf traverse                                       hook_dispatch.HookDispatcher
    b763c59bc499 AddonManager.trigger_event                     hook_dispatch.HookDispatcher.trigger_event
    350b419ab728 AddonManager._iter_hooks                       hook_dispatch.HookDispatcher.trigger_event
    38c97e792d1d AddonManager.handle_lifecycle                  hook_dispatch.REQUEST_HOOK_NAMES
    b710a0ed043c Loader.add_option                              addon.Gate.load
    2b4388ba83ec,9dcb0a92bd9a Loader.add_command                             flows.FlowViews.load
    bad3d9f88bdf traverse                                       flows.FlowViews
    01ddcca314ee AddonManager.register                          addon.Gate.installed
    2e93aab2204a AddonManager.remove                            addon.Gate.done
    6d4907744905 AddonManager.get                               addon.Gate.installed
    b763c59bc499 AddonManager.trigger_event                     addon.Gate.done
    131805324403 AddonManager.invoke_addon                      addon.Gate.done
    212818268a95 AddonManager.invoke_addon_sync                 addon.Gate.done
    f2052c18340e safecall                                       hook_dispatch.HookDispatcher.trigger_event
mitmproxy.addons.view
    d8a5d631b65c View.add                                       flows.FlowViews._drop_old
    e6f502432cc3 View.get_by_id                                 flows.FlowViews._drop_old
    081e9c0cbb95 View.remove                                    flows.FlowViews._drop_old
    dafb2f5af167 View.update                                    flows.FlowViews.show
mitmproxy.addons.clientplayback
    5a67b2aa6117 MockServer                                     flows.FlowViews.responseheaders
    cd1e8cb11b10 ReplayHandler                                  flows.FlowViews.requestheaders
    9ee783101079 ClientPlayback.start_replay                    flows.FlowViews.requestheaders
mitmproxy.addons.save
    eba6fbbeeca0 Save.save_flow                                 flows.FlowViews.response
mitmproxy.flowfilter
    a122b2d74e27,27e2ad3d9533 _Rex                                           flows.quoted
    f039051aebe0,2e4a35e667ea FMeta                                          flows.FlowViews.only_key
mitmproxy.contentviews
    5b6872aba7f8 prettify_message                               contentview.ConversationView
mitmproxy.addons.script
    f6f07b85c252 Script                                         addon.OllamaAuth
mitmproxy.addons.anticache
    b48d2e8a6a56 AntiCache.request                              hook_dispatch.IDLE_WHEN
mitmproxy.addons.anticomp
    b0d9e97431ce AntiComp.request                               hook_dispatch.IDLE_WHEN
mitmproxy.addons.block
    44848d3720b1 Block.client_connected                         hook_dispatch.IDLE_WHEN
mitmproxy.addons.blocklist
    b57fd28ef285 BlockList.request                              hook_dispatch.IDLE_WHEN
mitmproxy.addons.disable_h2c
    6e899d77f8c2 DisableH2C                                     hook_dispatch.IDLE_WHEN
mitmproxy.addons.dumper
    ae4f996a70cc Dumper.match                                   hook_dispatch.IDLE_WHEN
    958cbd998d73 Dumper.response                                hook_dispatch.IDLE_WHEN
mitmproxy.addons.maplocal
    4c6bf038aa47 MapLocal.request                               hook_dispatch.IDLE_WHEN
mitmproxy.addons.mapremote
    e7caae41db68 MapRemote.request                              hook_dispatch.IDLE_WHEN
mitmproxy.addons.modifybody
    42b8f3e2fd33 ModifyBody                                     hook_dispatch.IDLE_WHEN
mitmproxy.addons.modifyheaders
    14c80253c6a1 ModifyHeaders                                  hook_dispatch.IDLE_WHEN
mitmproxy.addons.onboarding
    f6e48a4764c8 Onboarding.request                             hook_dispatch.IDLE_WHEN
mitmproxy.addons.asgiapp
    4f7a8f8411d5 ASGIApp.should_serve                           hook_dispatch.IDLE_WHEN
mitmproxy.addons.proxyauth
    27acaafec846 ProxyAuth.requestheaders                       hook_dispatch.IDLE_WHEN
mitmproxy.addons.save
    5b91fa004612 Save.request                                   hook_dispatch.IDLE_WHEN
    1cc915d5098b Save.response                                  hook_dispatch.IDLE_WHEN
    eba6fbbeeca0 Save.save_flow                                 hook_dispatch.IDLE_WHEN
mitmproxy.addons.savehar
    ce22fda770ac SaveHar.response                               hook_dispatch.IDLE_WHEN
    c5d5f275ff36 SaveHar._save_flow                             hook_dispatch.IDLE_WHEN
mitmproxy.addons.serverplayback
    e39ec867c40b ServerPlayback.request                         hook_dispatch.IDLE_WHEN
mitmproxy.addons.stickyauth
    76b0bbaeb506 StickyAuth.request                             hook_dispatch.IDLE_WHEN
mitmproxy.addons.stickycookie
    d57c78803120 StickyCookie.request                           hook_dispatch.IDLE_WHEN
    2cd0720d69af StickyCookie.response                          hook_dispatch.IDLE_WHEN
mitmproxy.addons.tlsconfig
    84c6d74b564d,4979371e5dca TlsConfig.request                              hook_dispatch.IDLE_WHEN
mitmproxy.addons.update_alt_svc
    25ce1b89275c UpdateAltSvc.responseheaders                   hook_dispatch.IDLE_WHEN
mitmproxy.addons.upstream_auth
    922226802465 UpstreamAuth.requestheaders                    hook_dispatch.IDLE_WHEN
mitmproxy.hooks
    314edf62e53f Hook                                           hook_dispatch.HookDispatcher.trigger_event
mitmproxy.log
    ba95afcdfe70 LegacyLogEvents                                hook_dispatch.HookDispatcher.set_log_level
    ffc1fb69904c MitmLogHandler                                 hook_dispatch.HookDispatcher.set_log_level
mitmproxy.addons.termlog
    262bdcb2d4aa TermLog                                        hook_dispatch.HookDispatcher.set_log_level
mitmproxy.addons.errorcheck
    bc0b8e23f833 ErrorCheck                                     addon.Gate.open
mitmproxy.optmanager
    26ca8b7a2d9b OptManager.process_deferred                    settings.check_names
    a9d5792099cd OptManager.__getattr__                         option_cache.CachedOptions
    6859c2d9c826 _Option.current                                option_cache.CachedOptions
mitmproxy.master
    45c44c14f8f7 Master.run                                     addon.Gate.done
    c3e2a2606576 Master.done                                    addon.Gate.drain
mitmproxy.tools.main
    bea9540bf91c run                                            addon.Gate.drain
mitmproxy.net.http.http1.read
    bf258f07286c expected_http_body_size                        http1_server.BoundedHttp1Server.send
    7f1f014abc5e read_response_head                             http1_messages.response_of
    00582e2a3719 _read_response_line                            http1_messages.response_of
    66807318a8b7 _read_headers                                  http1_messages.response_of
mitmproxy.http
    bad2ea9a351a MessageData                                    http1_messages.RequestData
    4371ac6b2dfb RequestData                                    http1_messages.RequestData
    d616b2451588 ResponseData                                   http1_messages.ResponseData
    a049b5aa3267 Request.__init__                               http1_messages.request_of
    c6aa2ee439b5 Response.__init__                              http1_messages.response_of
mitmproxy.net.http.http1.assemble
    e034304c8d89 assemble_request_head                          http1_client.BoundedHttp1Client.send
    ce2b0b0a77f3 assemble_response_head                         http1_server.BoundedHttp1Server.send_head
mitmproxy.net.http.validate
    e7647a947043 validate_headers                               stream.GateStream.check_invalid
h11._readers
    4d2629eeaaf3 ChunkedReader                                  fast_path.LayerFastPath.take
    fdf438f5ca7e ContentLengthReader                            fast_path.LayerFastPath.take
    4d2629eeaaf3 ChunkedReader                                  http1_messages.Body.read_body
    fdf438f5ca7e ContentLengthReader                            http1_messages.Body.read_body
h11._receivebuffer
    108c4355eb3b ReceiveBuffer                                  http1_server.BoundedHttp1Server
    108c4355eb3b ReceiveBuffer                                  listener.NewConnection
h2.frame_buffer
    22fe5e16e85f,660a8b118b91 FrameBuffer                       http2_frames.FrameReader
"""
"""Per module: digests of the source, the name in that module, and our code that depends on it."""

ATTRIBUTES = """
mitmproxy.connection:Client id peername sockname proxy_mode transport_protocol state error alpn alpn_offers sni tls
mitmproxy.connection:Server id address state error via sni tls alpn connected transport_protocol
mitmproxy.proxy.context:Context client server options layers
mitmproxy.proxy.layer:Layer context _paused _paused_event_queue
mitmproxy.proxy.layers.http:HttpLayer streams connections waiting_for_establishment command_sources
mitmproxy.proxy.layers.http:HttpStream flow stream_id
mitmproxy.proxy.layers.http._http1:Http1Connection buf request response request_done response_done body_reader state
mitmproxy.proxy.layers.http._http2:Http2Connection h2_conn streams
mitmproxy.proxy.server:ConnectionHandler transports client max_conns
mitmproxy.flow:Flow client_conn server_conn live error comment metadata marked is_replay intercepted
mitmproxy.http:HTTPFlow request response
mitmproxy.http:Message stream headers trailers raw_content
mitmproxy.addonmanager:AddonManager chain lookup get register
mitmproxy.tls:TlsData conn context
mitmproxy.proxy.server_hooks:ServerConnectionHookData server client
mitmproxy.proxy.events:ConnectionEvent connection
mitmproxy.proxy.commands:ConnectionCommand connection
mitmproxy.proxy.commands:CloseTcpConnection half_close
mitmproxy.proxy.layers.http._http_h2:BufferedH2Connection stream_buffers
mitmproxy.proxy.commands:RequestWakeup delay
mitmproxy.proxy.events:Wakeup command
h2.connection:H2Connection close_connection data_to_send reset_stream send_headers acknowledge_received_data ping
h2.connection:H2Connection encoder decoder highest_inbound_stream_id outbound_flow_control_window remote_settings
h2.connection:H2Connection max_inbound_frame_size
h2.stream:H2Stream state_machine outbound_flow_control_window
hpack:Encoder header_table_size encode
hpack:Decoder max_header_list_size decode
h2.settings:SettingCodes MAX_CONCURRENT_STREAMS MAX_HEADER_LIST_SIZE MAX_FRAME_SIZE
h2.settings:Settings acknowledge
OpenSSL.SSL:Connection shutdown get_state_string sendall bio_read
"""

OPTIONS = """
add_upstream_certs_to_client_chain allow_hosts anticache anticomp block_global block_list block_private
body_size_limit cert_passphrase certs ciphers_client ciphers_server client_certs client_replay
client_replay_concurrency command_history confdir connect_addr connection_strategy console_focus_follow
content_view_lines_cutoff dns_name_servers dns_use_hosts_file dumper_default_contentview dumper_filter emudhra
emudhra_old export_preserve_original_ip flow_detail hardump http2 http2_ping_keepalive http3
http_connect_send_host_header ignore_hosts intercept intercept_active keep_alt_svc_header keep_host_header
keepserving key_size listen_host listen_port map_local map_remote mode modify_body modify_headers
normalize_outbound_headers onboarding onboarding_host protobuf_definitions proxy_debug proxyauth rawtcp
readfile_filter request_client_cert rfile save_stream_file save_stream_filter scripts server server_replay
server_replay_extra server_replay_ignore_content server_replay_ignore_host server_replay_ignore_params
server_replay_ignore_payload_params server_replay_ignore_port server_replay_kill_extra server_replay_nopop
server_replay_refresh server_replay_reuse server_replay_use_headers show_ignored_hosts showhost ssl_insecure
ssl_verify_upstream_trusted_ca ssl_verify_upstream_trusted_confdir stickyauth stickycookie store_streamed_bodies
stream_large_bodies strip_ech tcp_hosts tcp_timeout termlog_verbosity tls_ecdh_curve_client tls_ecdh_curve_server
tls_version_client_max tls_version_client_min tls_version_server_max tls_version_server_min udp_hosts upstream_auth
upstream_cert validate_inbound_headers view_filter view_order view_order_reversed web_columns web_debug web_host
web_open_browser web_password web_port web_static_viewer web_theme websocket
"""
"""The options of mitmdump and mitmweb; settings.py refuses values that would open the gate."""


class Row(NamedTuple):
    digests: tuple[str, ...]
    theirs: str
    ours: str


def table() -> Iterator[Row]:
    module = ""
    for line in TABLE.strip().splitlines():
        if line.startswith(" "):
            digests, name, ours = line.split()
            yield Row(tuple(digests.split(",")), f"{module}:{name}", ours)
        else:
            module = line


MODULES = {found.name.rpartition(".")[2]: found.name for found in walk_packages(ollama_auth.__path__, "ollama_auth.")}
"""Full names of our modules by their last part."""


def find(name: str) -> Any:
    """What `module:Class.member` names."""
    module, _, path = name.partition(":")
    with warnings.catch_warnings(action="ignore"):  # Those of others, when they are imported.
        return attrgetter(path)(import_module(module))


def digest(theirs: str) -> str:
    return hashlib.sha256(inspect.getsource(find(theirs)).encode()).hexdigest()[:12]


def release(theirs: str) -> str:
    package = theirs.split(".")[0].partition(":")[0]
    return f"{package} {metadata.version(package)}"


@each_of("row", list(table()), ids=lambda row: row.theirs)
def test_it_is_what_it_was(row: Row) -> None:
    review = f"review ollama_auth.{row.ours}, then add the new digest (see the top of this file)"
    try:
        found = digest(row.theirs)
    except (AttributeError, ImportError, OSError, TypeError) as error:
        pytest.fail(f"{release(row.theirs)} has no {row.theirs} any more ({error}): {review}")
    if found not in row.digests:
        pytest.fail(f"{release(row.theirs)} has changed {row.theirs}: {review}")


@each_of("row", list(table()), ids=lambda row: row.theirs)
def test_what_leans_on_it_is_there(row: Row) -> None:
    """The right column names code that exists."""
    module, _, path = row.ours.partition(".")
    attrgetter(path)(import_module(MODULES[module]))


@each_of("line", ATTRIBUTES.strip().splitlines(), ids=lambda line: line.split()[0])
def test_attributes(line: str) -> None:
    """Each is an attribute of the class, or set when one is made."""
    name, *attributes = line.split()
    owner = find(name)
    known = {word for base in owner.__mro__ for word in getattr(base, "__annotations__", ())}
    made = inspect.getsource(owner)
    for attribute in attributes:
        assert attribute in known or hasattr(owner, attribute) or f"self.{attribute} =" in made, (
            f"{release(name)}: {name} has no {attribute}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("program", ["mitmdump", "mitmweb"])
def test_each_option_was_thought_of(program: str, tmp_path: Path) -> None:
    """A new option may open the gate: check what it does, refuse it in settings.py if so, then add it above."""
    command = [str(Path(sys.executable).parent / program), "--options", "--set", f"confdir={tmp_path}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert {*re.findall(r"^(\w+):", told, re.MULTILINE)} <= {*OPTIONS.split()}


ALL_OURS = """
client_connection connections events http1_client http1_messages http1_server http2 http2_unsent layer proxy_protocol
stream tls transport upstream
"""
OURS = [
    member
    for module in (import_module(MODULES[name]) for name in ALL_OURS.split())
    for member in vars(module).values()
    if isinstance(member, type) and member.__module__ == module.__name__
]


def overridden() -> Iterator[tuple[str, FunctionType, FunctionType, str]]:
    """(name, our method, theirs, where theirs is)"""
    for cls in OURS:
        for name, method in vars(cls).items():
            for base in cls.__mro__[1:]:
                if base.__module__.startswith("mitmproxy") and name in vars(base):
                    theirs = vars(base)[name]
                    written = name == "__init__" or not name.startswith("__")  # By us, and not by dataclasses.
                    if written and isinstance(method, FunctionType) and isinstance(theirs, FunctionType):
                        yield f"{cls.__name__}.{name}", method, theirs, f"{base.__module__}:{base.__qualname__}.{name}"
                    break


@each_of("case", list(overridden()), ids=lambda case: case[0])
def test_each_method_that_is_overridden_is_in_the_table(case: tuple[str, FunctionType, FunctionType, str]) -> None:
    """It also has the same parameters."""
    name, ours, theirs, where = case
    rows = {row.theirs for row in table()}
    assert where in rows or where.rpartition(".")[0] in rows, f"{name} overrides {where}: put that into the table"
    if ours.__name__ != "__init__":
        taken = [list(inspect.signature(method).parameters) for method in (ours, theirs)]
        assert [n.lstrip("_") or "event" for n in taken[0]] == [n.lstrip("_") or "event" for n in taken[1]], name


def test_a_reader_that_reads_all_that_is_there() -> None:
    """asyncio's, whose `read` BulkReader takes the place of."""
    source = inspect.getsource(asyncio.StreamReader.read)
    for line in (
        "if self._exception is not None:\n            raise self._exception",
        "if not self._buffer and not self._eof:\n            await self._wait_for_data('read')",
        "del self._buffer[:n]\n\n        self._maybe_resume_transport()\n        return data",
    ):
        assert line in source
    waiting = inspect.getsource(asyncio.StreamReader._wait_for_data)  # type: ignore[attr-defined]
    assert "if self._paused:\n            self._paused = False\n            self._transport.resume_reading()" in waiting
    assert "self._exception = exc" in inspect.getsource(asyncio.StreamReader.set_exception)
    assert "2 * self._limit" in inspect.getsource(asyncio.StreamReader.feed_data)
    assert "__slots__" not in vars(asyncio.StreamReader)


def test_how_a_protocol_hands_on_what_comes() -> None:
    """asyncio's, whose place BulkProtocol takes."""
    source = inspect.getsource(asyncio.StreamReaderProtocol.data_received)
    assert source.split("\n", 1)[1].split() == (
        ["reader", "=", "self._stream_reader", "if", "reader", "is", "not", "None:", "reader.feed_data(data)"]
    )


def test_a_reader_that_is_full() -> None:
    """asyncio's, of which transport.resume_reading asks whether it has paused its transport itself."""
    assert "self._paused" in inspect.getsource(asyncio.StreamReader.feed_data)
    assert "self._paused" in inspect.getsource(asyncio.StreamReader._maybe_resume_transport)  # type: ignore[attr-defined]


def main() -> None:
    """Add what is installed to the table."""
    path = Path(__file__)
    text = path.read_text()
    for row in table():
        name, known = row.theirs.partition(":")[2], ",".join(row.digests)
        if (found := digest(row.theirs)) not in row.digests:
            text = text.replace(f"{known} {name} ", f"{known},{found} {name} ")
    path.write_text(text)


if __name__ == "__main__":
    main()
