"""Goal: whatever is sent to the simulated vCenter, it answers with a bounded, well-formed refusal and lives on."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import pytest

from lab.vcenter.soap import BadRequest, parse_call
from tests.unit.lab_vcenter_double import HostsDouble
from tests.unit.lab_vcenter_front import Front

ENVELOPE = (
    '<soapenv:Envelope xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/" '
    'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"><soapenv:Body>{}</soapenv:Body></soapenv:Envelope>'
)
THIS = '<_this type="ServiceInstance">ServiceInstance</_this>'


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    hosts = HostsDouble(1)
    running = Front(hosts.url, tmp_path_factory.mktemp("front"))
    yield running
    running.close()
    hosts.close()


def exchange(front: Front, method: str, path: str, body: bytes = b"") -> tuple[int, str]:
    connection = http.client.HTTPSConnection("127.0.0.1", front.port, context=front.context(), timeout=10)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def call(content: str) -> bytes:
    return ENVELOPE.format(content).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not xml at all",
        b"<html/>",
        b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aa">]><x>&a;</x>',
        call(""),
        call(f'<NoSuchMethod xmlns="urn:vim25">{THIS}</NoSuchMethod>'),
        call('<CurrentTime xmlns="urn:vim25"/>'),
        call(f'<Login xmlns="urn:vim25">{THIS}<shoeSize>42</shoeSize></Login>'),
        call(f'<CurrentTime xmlns="urn:vim25">{THIS}</CurrentTime>' * 2),
        call('<CurrentTime xmlns="urn:vim25"><_this type="Teapot">x</_this></CurrentTime>'),
        call('<CurrentTime xmlns="urn:vim25"><_this>x</_this></CurrentTime>'),
        b"\xff\xfe\x00",
    ],
)
def test_nonsense_is_an_invalid_request(front: Front, body: bytes) -> None:
    status, text = exchange(front, "POST", "/sdk", body)
    assert status == 500
    assert "InvalidRequestFault" in text
    assert "Traceback" not in text
    assert ".py" not in text


def test_too_much_is_refused_unread(front: Front) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", front.port, context=front.context(), timeout=10)
    connection.putrequest("POST", "/sdk")
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"3\r\nabc\r\n0\r\n\r\n", 500),
        (b"3;note=x\r\nabc\r\n0\r\nTrailer: y\r\n\r\n", 500),
        (b"fffffff\r\n", 413),
        (b"-1\r\n", 400),
        (b"3\r\nabcdef\r\n", 400),
    ],
)
def test_chunks_are_read_and_bounded(front: Front, sent: bytes, status: int) -> None:
    """Go's client sends every request in chunks. 500: read, and then refused as no SOAP."""
    connection = http.client.HTTPSConnection("127.0.0.1", front.port, context=front.context(), timeout=10)
    connection.putrequest("POST", "/sdk")
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    connection.send(sent)
    assert connection.getresponse().status == status
    connection.close()


def test_a_length_is_needed(front: Front) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", front.port, context=front.context(), timeout=10)
    connection.putrequest("POST", "/sdk")
    connection.endheaders()
    assert connection.getresponse().status == 411
    connection.close()


def test_other_addresses(front: Front) -> None:
    assert "8.0.3.0" in exchange(front, "GET", "/sdk/vimServiceVersions.xml")[1]
    assert exchange(front, "GET", "/sdk/vimService.wsdl")[0] == 200
    assert exchange(front, "GET", "/etc/passwd")[0] == 404
    assert exchange(front, "POST", "/lab/expire-sessions")[0] == 404
    assert exchange(front, "GET", "/lab/status")[0] == 404


def test_a_plain_http_client_gets_nothing(front: Front) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)
    connection.request("GET", "/sdk/vimServiceVersions.xml")
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    connection.close()
    assert exchange(front, "GET", "/sdk/vimServiceVersions.xml")[0] == 200


def test_a_method_of_another_object_and_an_unsupported_one(front: Front) -> None:
    si = front.connect()
    cookie = si._stub.cookie
    connection = http.client.HTTPSConnection("127.0.0.1", front.port, context=front.context(), timeout=10)
    target = '<_this type="Folder">group-v3</_this>'
    for content, fault in (
        (f'<CurrentTime xmlns="urn:vim25">{target}</CurrentTime>', "MethodNotFound"),
        (f'<CreateFolder xmlns="urn:vim25">{target}<name>x</name></CreateFolder>', "NotSupported"),
        (f'<Fetch xmlns="urn:vim25">{target}<prop>no</prop></Fetch>', "InvalidProperty"),
        (f'<RegisterVM_Task xmlns="urn:vim25">{target}</RegisterVM_Task>', "InvalidArgument"),
    ):
        connection.request("POST", "/sdk", call(content), {"Cookie": cookie})
        answer = connection.getresponse()
        assert answer.status == 500
        assert f"{fault}Fault" in answer.read().decode()
    connection.close()


def test_nesting_is_bounded() -> None:
    with pytest.raises(BadRequest):
        parse_call(b"<a>" * 100_000)
