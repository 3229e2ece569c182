"""UPnP: what is sent to a router and what it answers, hostile ones included.

The description and the responses have the form of miniupnpd's.
"""

import contextlib
from ipaddress import IPv4Address
from xml.etree.ElementTree import fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlayd.errors import ProtocolError
from overlayd.proto import upnp
from overlayd.proto.upnp import Place, Refused, Service

ROUTER = IPv4Address("192.0.2.254")
DESCRIBED = Place(5000, "/rootDesc.xml")
SERVICE = Service("urn:schemas-upnp-org:service:WANIPConnection:2", Place(5000, "/ctl/IPConn"))
ANSWER = (
    b"HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nLocation: http://192.0.2.254:5000/rootDesc.xml\r\nST: x\r\n\r\n"
)


def described(*services, base="", space=' xmlns="urn:schemas-upnp-org:device-1-0"'):
    listed = "".join(
        f"<service><serviceType>urn:schemas-upnp-org:service:{type}</serviceType><controlURL>{url}</controlURL></service>"
        for type, url in services
    )
    inner = f"<device><deviceList><device><serviceList>{listed}</serviceList></device></deviceList></device>"
    return f'<?xml version="1.0"?>\n<root{space}>{base}{inner}</root>\r\n'.encode()


def answered(action, **values):
    inner = "".join(f"<{name}>{value}</{name}>" for name, value in values.items())
    return (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<u:{action}Response xmlns:u="{SERVICE.type}">{inner}</u:{action}Response></s:Body></s:Envelope>'
    ).encode()


def fault(code):
    return (
        '<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><detail><UPnPError '
        f'xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode></UPnPError></detail></s:Fault></s:Body>'
        "</s:Envelope>"
    ).encode()


def test_a_search_and_its_answer():
    for search in upnp.searches():
        assert search.startswith(b"M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\n") and search.endswith(
            b"\r\n\r\n"
        )
        assert b'MAN: "ssdp:discover"\r\n' in search and b"ST: urn:schemas-upnp-org:" in search
    assert upnp.read_answer(ANSWER, ROUTER) == DESCRIBED
    assert upnp.read_answer(ANSWER.replace(b":5000/rootDesc.xml", b""), ROUTER) == Place(80, "/")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"NOTIFY * HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        *(
            ANSWER.replace(b"http://192.0.2.254:5000/rootDesc.xml", url)
            for url in (
                b"http://192.0.2.253:5000/rootDesc.xml",
                b"http://192.0.2.254.example:5000/",
                b"http://192.0.2.254:5000@198.51.100.1/",
                b"https://192.0.2.254/",
                b"file:///etc/passwd",
                b"http://192.0.2.254:99999/",
                b"http://192.0.2.254:5000/a b",
                b"http://[192.0.2.254/",
            )
        ),
    ],
)
def test_an_answer_that_leads_nowhere_or_elsewhere(answer):
    with pytest.raises(ProtocolError):
        upnp.read_answer(answer, ROUTER)


@pytest.mark.parametrize("space", ["", ' xmlns="urn:schemas-upnp-org:device-1-0"'])
def test_the_service_that_maps_ports_is_found_wherever_it_stands(space):
    read = lambda document: upnp.read_description(document, ROUTER, DESCRIBED)  # noqa: E731
    both = (("Layer3Forwarding:1", "/l3"), ("WANPPPConnection:1", "/ppp"), ("WANIPConnection:1", "ctl/ip?x=1"))
    assert read(described(*both, space=space)) == Service(
        "urn:schemas-upnp-org:service:WANIPConnection:1", Place(5000, "/ctl/ip?x=1")
    )
    newer = described(*both, ("WANIPConnection:2", "http://192.0.2.254:5555/c"), space=space)
    assert read(newer).place == Place(5555, "/c")
    based = described(both[1], base="<URLBase>http://192.0.2.254:49152/igd/</URLBase>", space=space)
    assert read(based) == Service("urn:schemas-upnp-org:service:WANPPPConnection:1", Place(49152, "/ppp"))


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<root>",
        b"\xff\xfe<\0r\0o\0o\0t\0/\0>\0",
        described(),
        described(("Layer3Forwarding:1", "/l3")),
        described(("WANIPConnection:1", "")),
        described(("WANIPConnection:1", "http://198.51.100.1/ctl")),
        described(("WANIPConnection:1", "//198.51.100.1/ctl")),
        described(("WANIPConnection:1", "/ctl"), base="<URLBase>http://198.51.100.1/</URLBase>"),
        b'<!DOCTYPE r [<!ENTITY a "b">]>' + described(("WANIPConnection:1", "/&a;")).partition(b"\n")[2],
        described(("WANIPConnection:1", "/ctl")) + b" " * upnp.LARGEST_DOCUMENT,
    ],
)
def test_a_description_of_nothing_that_serves(document):
    with pytest.raises(ProtocolError):
        upnp.read_description(document, ROUTER, DESCRIBED)


def test_an_action_is_what_soap_has():
    body, headers = upnp.request(SERVICE, "AddPortMapping", NewRemoteHost="", NewExternalPort=5, NewText="<&>")
    assert dict(headers)["SOAPAction"] == f'"{SERVICE.type}#AddPortMapping"'
    (action,) = fromstring(body)[0]
    assert action.tag == f"{{{SERVICE.type}}}AddPortMapping"
    assert [(each.tag, each.text or "") for each in action] == [
        ("NewRemoteHost", ""),
        ("NewExternalPort", "5"),
        ("NewText", "<&>"),
    ]


def test_what_an_action_gave():
    read = upnp.read_response(200, answered("GetExternalIPAddress", NewExternalIPAddress="198.51.100.7"))
    assert upnp.read_address(read) == IPv4Address("198.51.100.7")
    assert upnp.read_response(200, answered("AddPortMapping")) == {}
    for code in (718, 725, 606, 999):
        with pytest.raises(Refused) as refused:
            upnp.read_response(500, fault(code))
        assert refused.value.code == code and str(refused.value)
    for status, document in ((404, answered("X")), (500, fault("x")), (500, fault("9" * 5000)), (500, answered("X"))):
        with pytest.raises(Refused):
            upnp.read_response(status, document)
    with pytest.raises(Refused, match="no external address"):
        upnp.read_address({"NewExternalIPAddress": "0.0.0.0"})
    for bad in ({}, {"NewExternalIPAddress": "router.example"}, {"NewExternalIPAddress": ""}):
        with pytest.raises(ProtocolError):
            upnp.read_address(bad)
    with pytest.raises(ProtocolError):
        upnp.read_response(200, b"<s:Envelope xmlns:s='x'/>")


@given(
    st.integers(0, 2), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6), st.integers(0, 600)
)
def test_damage_is_a_protocol_error_or_leads_to_the_router(which, damage, end):
    whole = [
        ANSWER,
        described(("WANIPConnection:1", "/ctl")),
        answered("GetExternalIPAddress", NewExternalIPAddress="1.2.3.4"),
    ]
    message = bytearray(whole[which])
    for at, byte in damage:
        message[at % len(message)] = byte
    said = bytes(message[: max(end, 20)])
    with contextlib.suppress(ProtocolError, Refused):
        upnp.read_answer(said, ROUTER)
    with contextlib.suppress(ProtocolError, Refused):
        upnp.read_description(said, ROUTER, DESCRIBED)
    with contextlib.suppress(ProtocolError, Refused):
        upnp.read_address(upnp.read_response(200, said))
