"""Asking a router to send a port here by UPnP: the control point of an Internet gateway device (IGD:1 and IGD:2).

Owns: the search by SSDP, where a router's description says that its service is, and that service's actions by SOAP.
Must not know: sockets, clocks, HTTP itself (`proto.http`), who is asked or when.

UPnP Device Architecture 1.1, WANIPConnection:2.  A router is believed about itself alone: every address in what it says
has to be its own.  Its documents are read without document types, so nothing in one expands, or is fetched.
"""

import re
from collections.abc import Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError, fromstring
from xml.sax.saxutils import escape

from overlayd.errors import ProtocolError

GROUP, PORT = IPv4Address("239.255.255.250"), 1900  # of SSDP
LARGEST_DOCUMENT = 65_536  # our own constant, bytes: descriptions have some 5,000

# In the order in which they are taken; a device of a later version answers searches for an earlier one.
_SERVICES = tuple(
    f"urn:schemas-upnp-org:service:{service}"
    for service in ("WANIPConnection:2", "WANIPConnection:1", "WANPPPConnection:1")
)
_SEARCHED = ("urn:schemas-upnp-org:device:InternetGatewayDevice:1", *_SERVICES[1:])
_ENVELOPE = (
    '<?xml version="1.0"?>\n'
    '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
    's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
    '<u:{action} xmlns:u="{service}">{arguments}</u:{action}></s:Body></s:Envelope>\n'
)

CONFLICT = 718  # another host has the external port
ONLY_PERMANENT = 725  # the router knows no mappings that end

_URL = re.compile(r"http://(?P<host>[0-9.]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/[!-~]*)?")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")

# What a refusal says to an operator (WANIPConnection:2, section 2.5).
_ERRORS = {
    401: "it knows no such action",
    402: "it finds the request malformed",
    501: "it failed",
    606: "it does not allow that",
    716: "it wants another external port",
    CONFLICT: "the external port is not to be had",
    724: "it maps no other port than the one inside",
    ONLY_PERMANENT: "it maps no port for a time",
    728: "it has no room left",
    729: "the external port is not to be had",
}


class Place(NamedTuple):
    """Where something of the router's is had by HTTP."""

    port: int
    path: str


class Service(NamedTuple):
    """What maps ports.  type: its URN."""

    type: str
    place: Place


class Refused(Exception):
    """The router said no, in words.  code: the number of its reason, 0 for none."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def searches() -> list[bytes]:
    """The datagrams that ask for routers."""
    lines = ("M-SEARCH * HTTP/1.1", f"HOST: {GROUP}:{PORT}", 'MAN: "ssdp:discover"', "MX: 1")
    return ["\r\n".join((*lines, f"ST: {target}", "", "")).encode() for target in _SEARCHED]


def read_answer(datagram: bytes, router: IPv4Address) -> Place:
    """Where the router that has answered a search describes itself.  ProtocolError for anything else."""
    status, *lines = datagram.decode("ascii", "replace").splitlines() or [""]
    if not status.startswith("HTTP/1.1 200"):
        raise ProtocolError("no answer to a search by SSDP")
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == "location":
            return _place(value.strip(), router)
    raise ProtocolError("an answer to a search by SSDP that says no location")


def read_description(document: bytes, router: IPv4Address, described: Place) -> Service:
    """The service that maps ports.  described: where the document is from.  ProtocolError when there is none."""
    root = _read(document)
    base = _place(url, router) if (url := _text(root, "URLBase")) else described
    found = {
        type: control
        for service in _all(root, "service")
        if (type := _text(service, "serviceType")) and (control := _text(service, "controlURL"))
    }
    for type in _SERVICES:
        if type in found:
            return Service(type, _place(found[type], router, base))
    raise ProtocolError("the router describes no service that maps ports")


def request(service: Service, action: str, **arguments: object) -> tuple[bytes, tuple[tuple[str, str], ...]]:
    """An action of the service, as the body and the headers of a POST request.  arguments: in their order."""
    inner = "".join(f"<{name}>{escape(str(value))}</{name}>" for name, value in arguments.items())
    body = _ENVELOPE.format(action=action, service=service.type, arguments=inner).encode()
    return body, (("Content-Type", 'text/xml; charset="utf-8"'), ("SOAPAction", f'"{service.type}#{action}"'))


def read_response(status: int, document: bytes) -> Mapping[str, str]:
    """What the action gave.  Refused; ProtocolError."""
    root = _read(document)
    if status == 200:
        for element in root.iter():
            if _name(element).endswith("Response"):
                return {_name(child): (child.text or "").strip() for child in element}
        raise ProtocolError("a response without an answer")
    code = _text(root, "errorCode")
    if status != 500 or not (code.isascii() and code.isdecimal() and len(code) < 5):
        raise Refused(0, f"it answers with HTTP status {status}")
    raise Refused(int(code), _ERRORS.get(int(code), f"it answers {int(code)}"))


def read_address(response: Mapping[str, str]) -> IPv4Address:
    """The router's external address.  Refused when it has none; ProtocolError."""
    try:
        address = IPv4Address(response.get("NewExternalIPAddress", ""))
    except AddressValueError:
        raise ProtocolError("a response without an address") from None
    if address.is_unspecified:
        raise Refused(0, "it has no external address")
    return address


def _place(url: str, router: IPv4Address, base: Place | None = None) -> Place:
    """Where a URL leads.  base: where it stands, when it may be relative to that (RFC 3986, section 5)."""
    if base is not None and not _SCHEME.match(url):
        if url.startswith("//"):
            raise ProtocolError(f"the router points elsewhere: {url[:100]!r}")
        directory = "" if url.startswith("/") else base.path[: base.path.rfind("/") + 1]
        url = f"http://{router}:{base.port}{directory}{url}"
    found = _URL.fullmatch(url)
    if found is None or found["host"] != str(router):
        raise ProtocolError(f"the router points elsewhere: {url[:100]!r}")
    port = int(found["port"] or 80)
    if not 0 < port < 65536:
        raise ProtocolError("an address without a port that exists")
    return Place(port, found["path"] or "/")


def _read(document: bytes) -> Element:
    try:
        text = document.decode("utf-8-sig")
        if len(document) > LARGEST_DOCUMENT or "<!DOCTYPE" in text:
            raise ProtocolError("a document that is too long, or has a type")
        return fromstring(text)
    except (UnicodeDecodeError, ParseError, ValueError):
        raise ProtocolError("a document that is no XML") from None


def _name(element: Element) -> str:
    """Without its namespace: routers differ."""
    return element.tag.rpartition("}")[2]


def _all(root: Element, name: str) -> Sequence[Element]:
    return [element for element in root.iter() if _name(element) == name]


def _text(root: Element, name: str) -> str:
    """The text of the first element of that name, "" without one."""
    return next((element.text or "" for element in root.iter() if _name(element) == name), "").strip()
