"""SOAP 1.1 documents of the vSphere Web Services API, by pyVmomi's own (de)serialiser.

A request names its method by the element below `Body`; the first child `_this` is the managed object,
the others are the parameters (vSphere Web Services SDK Programming Guide, "SOAP messages"). Answers and
faults live in `urn:vim25`; the API version that the client speaks stands in its `SOAPAction` header.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate
from xml.sax.saxutils import escape

from pyVmomi import VmomiSupport, vmodl
from pyVmomi.SoapAdapter import (
    NS_SEP,
    SOAP_NSMAP,
    ExpatDeserializerNSHandlers,
    SoapDeserializer,
    SoapSerializer,
)

from lab.vcenter.reflect import properties_of

XMLNS_SOAPENV = "http://schemas.xmlsoap.org/soap/envelope/"
XMLNS_VIM25 = "urn:vim25"
API_VERSION = "8.0.3.0"
OWN_VERSION = "vim.version.v8_0_3_0"
_EARLIEST = "vmodl.version.version0"
"""What a parameter or result is declared in, so that no version check drops it."""

_NSMAP = {**SOAP_NSMAP, XMLNS_VIM25: ""}
_HEAD = (
    '<?xml version="1.0" encoding="UTF-8"?>\n<soapenv:Envelope '
    + " ".join(f'xmlns:{prefix}="{uri}"' for uri, prefix in SOAP_NSMAP.items())
    + ">\n<soapenv:Body>\n"
)
_TAIL = "\n</soapenv:Body>\n</soapenv:Envelope>\n"
_REFERENCE_MARK = 'xsi:type="ManagedObject"'
_REFERENCE_TAG = re.compile(rf"(<[^<>]*){_REFERENCE_MARK}")
_MAX_DEPTH = 64  # deeper than any specification of a real client; bounds what is parsed recursively later

SERVICE_VERSIONS = f"""<?xml version="1.0" encoding="UTF-8"?>
<namespaces version="1.0">
 <namespace><name>urn:vim25</name><version>{API_VERSION}</version>
  <priorVersions><version>8.0.2.0</version><version>8.0.1.0</version><version>8.0.0.1</version>
   <version>7.0.3.0</version><version>7.0.0.0</version><version>6.7</version><version>6.5</version></priorVersions>
 </namespace>
</namespaces>
"""
SERVICE_WSDL = f"""<?xml version="1.0" encoding="UTF-8"?>
<definitions targetNamespace="urn:vim25Service" xmlns="http://schemas.xmlsoap.org/wsdl/">
 <documentation>safehaul lab, vSphere API {API_VERSION}</documentation>
 <import location="vim.wsdl" namespace="urn:vim25"/>
</definitions>
"""


class BadRequest(Exception):  # noqa: N818 - it becomes a fault, not an error of ours
    """The request is no SOAP call of this API. The message may go to the client: it holds no internals."""


@dataclass
class Call:
    """One parsed method call.

    `target` is the managed object (`_this`), `method` the WSDL name, `arguments` what the client gave, keyed
    by the WSDL parameter names; absent optional parameters are not in it.
    """

    method: str
    target: Any
    info: Any
    arguments: dict[str, Any] = field(default_factory=dict)


def negotiated_version(soap_action: str | None) -> str:
    """PyVmomi's name of the version to answer in: the client's (from `SOAPAction`), at most our own."""
    uri = (soap_action or "").strip().strip('"')
    try:
        version: str = VmomiSupport.GetVersionFromVersionUri(uri)
    except (KeyError, ValueError, AttributeError, IndexError):
        return OWN_VERSION
    return version if VmomiSupport.IsChildVersion(OWN_VERSION, version) else OWN_VERSION


def parse_call(body: bytes) -> Call:
    """Parse one request.

    Raises:
        BadRequest: no well-formed envelope, an unknown method or parameter, a value of a wrong type.
    """
    reader = _CallReader()
    try:
        reader.parse(body)
    except BadRequest:
        raise
    except ExpatError as error:
        raise BadRequest(f"malformed XML: {error}") from error
    except Exception as error:
        # pyVmomi's deserialiser answers bad input with whatever exception its code meets (KeyError, TypeError,
        # AttributeError, ValueError, ...): all of them mean that the client sent what the API does not have.
        raise BadRequest(f"cannot read the request: {type(error).__name__}") from error
    return reader.result()


class _CallReader(ExpatDeserializerNSHandlers):  # type: ignore[misc]  # pyVmomi ships no types
    """Walks Envelope/Body/method and hands each parameter to pyVmomi's `SoapDeserializer`."""

    def __init__(self) -> None:
        super().__init__({})
        self._parser = ParserCreate(namespace_separator=NS_SEP)
        self._parser.buffer_text = True
        self._depth = 0
        self._in_body = False
        self._call: Call | None = None
        self._method_namespace = ""
        self._pending: tuple[str, Any, bool] | None = None

    def parse(self, body: bytes) -> None:
        parser = self._parser
        # A document type could declare entities; no SOAP message has one (SOAP 1.1, section 3).
        parser.StartDoctypeDeclHandler = self._refuse_doctype
        parser.StartElementHandler = self.StartElementHandler
        parser.EndElementHandler = self.EndElementHandler
        parser.CharacterDataHandler = self.CharacterDataHandler
        parser.StartNamespaceDeclHandler = self.StartNamespaceDeclHandler
        parser.EndNamespaceDeclHandler = self.EndNamespaceDeclHandler
        parser.Parse(body, True)

    def result(self) -> Call:
        if self._call is None:
            raise BadRequest("the envelope holds no method call")
        if self._call.target is None:
            raise BadRequest(f"{self._call.method}: _this is missing")
        return self._call

    @staticmethod
    def _refuse_doctype(*_: object) -> None:
        raise BadRequest("a document type declaration is not allowed")

    def StartElementHandler(self, tag: str, attributes: dict[str, str]) -> None:  # noqa: N802 - pyVmomi's name
        self._collect()
        namespace, _, name = tag.rpartition(NS_SEP)
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BadRequest("the request is nested too deeply")
        if self._depth == 1 and name != "Envelope":
            raise BadRequest(f"expected a SOAP envelope, found {name!r}")
        if self._depth == 2:
            self._in_body = name == "Body"
        elif self._depth == 3 and self._in_body:
            self._begin_method(namespace, name)
        elif self._depth == 4 and self._in_body:
            self._begin_parameter(tag, name, attributes)

    def EndElementHandler(self, _tag: str) -> None:  # noqa: N802 - pyVmomi's name
        self._collect()
        self._depth -= 1

    def CharacterDataHandler(self, _text: str) -> None:  # noqa: N802 - pyVmomi's name
        """Text between elements of the envelope carries nothing."""

    def _begin_method(self, namespace: str, name: str) -> None:
        if self._call is not None:
            raise BadRequest("one envelope holds one call")
        if name == "Fetch":
            # A single property of a managed object; in no type table, since every object has it.
            self._call = Call(name, None, None)
            return
        try:
            info = VmomiSupport.GetWsdlMethod(namespace or XMLNS_VIM25, name).info
        except KeyError as error:
            raise BadRequest(f"unknown method {name!r}") from error
        self._call = Call(name, None, info)

    def _begin_parameter(self, tag: str, name: str, attributes: dict[str, str]) -> None:
        assert self._call is not None
        if name == "_this":
            declared, many = VmomiSupport.ManagedObject, False
        elif self._call.info is None:
            if name != "prop":
                raise BadRequest(f"Fetch has no parameter {name!r}")
            declared, many = str, False
        else:
            parameter = next((each for each in self._call.info.params if each.name == name), None)
            if parameter is None:
                raise BadRequest(f"{self._call.method} has no parameter {name!r}")
            many = issubclass(parameter.type, list)
            declared = parameter.type.Item if many else parameter.type
        deserializer = SoapDeserializer()
        self._pending = (name, deserializer, many)
        # It takes over the parser's handlers until this element ends, then gives them back: its end is seen
        # at our next event, so our own depth goes down here.
        self._depth -= 1
        deserializer.Deserialize(self._parser, declared, False, self.nsMap)
        deserializer.StartElementHandler(tag, attributes)

    def _collect(self) -> None:
        if self._pending is None:
            return
        assert self._call is not None
        name, deserializer, many = self._pending
        self._pending = None
        value = deserializer.GetResult()
        if name == "_this":
            self._call.target = value
        elif many:
            self._call.arguments.setdefault(name, []).append(value)
        elif name in self._call.arguments:
            raise BadRequest(f"{self._call.method}: {name} is given twice")
        else:
            self._call.arguments[name] = value


def element_text(name: str, value: Any, declared: Any = object, version: str = OWN_VERSION) -> str:
    """Serialise `value` as element `name`; `declared` is the static type (object: written with its xsi:type)."""
    writer = io.StringIO()
    serializer = SoapSerializer(writer, version, _NSMAP)
    serializer.outermostAttrs = ""  # pyVmomi's own versionId mark, which no vCenter writes
    info = VmomiSupport.Object(name=name, type=declared, version=_EARLIEST, flags=VmomiSupport.F_OPTIONAL)
    serializer.Serialize(value, info)
    return _named_references(writer.getvalue())


def _named_references(text: str) -> str:
    """Give references the type name of the API where they stand for anything.

    pyVmomi writes its own class's name, `ManagedObject`, and reads both; other clients know only
    `ManagedObjectReference` (vim.wsdl). Only tags match: in texts every `<` is escaped.
    """
    if _REFERENCE_MARK not in text:
        return text
    return _REFERENCE_TAG.sub(r'\1xsi:type="ManagedObjectReference"', text)


def result_document(method: str, value: Any, declared: Any, version: str) -> bytes:
    """The answer of `method`; nothing inside when `value` is None or an empty list of a declared type."""
    content = "" if value is None else element_text("returnval", value, declared, version)
    text = f'{_HEAD}<{method}Response xmlns="{XMLNS_VIM25}">{content}</{method}Response>{_TAIL}'
    return text.encode()


def fault_document(fault: Any, version: str) -> bytes:
    """A SOAP fault that carries a vim or vmodl fault in its detail; sent with HTTP status 500."""
    name = VmomiSupport.GetWsdlName(type(fault))
    writer = io.StringIO()
    serializer = SoapSerializer(writer, version, _NSMAP)
    serializer.outermostAttrs = ""
    message = fault.msg or name
    bare = _without_message(fault)
    info = VmomiSupport.Object(name=f"{name}Fault", type=object, version=_EARLIEST, flags=0)
    serializer.SerializeFaultDetail(bare, info)
    opening = f"<{name}Fault"
    detail = _named_references(writer.getvalue()).replace(opening, f'{opening} xmlns="{XMLNS_VIM25}"', 1)
    text = (
        f"{_HEAD}<soapenv:Fault><faultcode>ServerFaultCode</faultcode>"
        f"<faultstring>{escape(message)}</faultstring><detail>{detail}</detail></soapenv:Fault>{_TAIL}"
    )
    return text.encode()


def bad_request_document(reason: str) -> bytes:
    """The fault for what is no call of this API at all."""
    return fault_document(vmodl.fault.InvalidRequest(msg=reason), OWN_VERSION)


def _without_message(fault: Any) -> Any:
    """A copy of `fault` without `msg`: the text goes into faultstring, which is where clients read it."""
    copy = type(fault)()
    for prop in properties_of(fault):
        if prop.name != "msg":
            setattr(copy, prop.name, getattr(fault, prop.name))
    return copy
