"""AWS's own description of its services, read from the data files that botocore ships.

`load("lambda")` gives operations, shapes and constraints. Only the parts that a server needs are decoded,
straight from the compressed file into slots; botocore's code is not imported (that alone would take 75 ms and
250 modules), and the user's `~/.aws/models` is not consulted: what the server speaks must not depend on the
home directory. Shapes link to one another lazily, so loading costs a few milliseconds whatever the size of the model.

A model is immutable and may be shared.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import pathlib
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec


class _Ref(msgspec.Struct):
    """A place in the file that names a shape, with what holds for that place only."""

    shape: str
    location: str | None = None
    locationName: str | None = None
    timestampFormat: str | None = None
    flattened: bool = False
    resultWrapper: str | None = None


class _HttpError(msgspec.Struct):
    httpStatusCode: int = 400
    code: str | None = None
    senderFault: bool = False


class _ShapeDef(msgspec.Struct):
    type: str
    members: dict[str, _Ref] = {}
    required: list[str] = []
    member: _Ref | None = None
    key: _Ref | None = None
    value: _Ref | None = None
    min: float | None = None
    max: float | None = None
    pattern: str | None = None
    enum: list[str] | None = None
    payload: str | None = None
    sensitive: bool = False
    eventstream: bool = False
    document: bool = False
    exception: bool = False
    error: _HttpError | None = None
    timestampFormat: str | None = None
    flattened: bool = False


class _Http(msgspec.Struct):
    method: str = "POST"
    requestUri: str = "/"
    responseCode: int = 200


class _OperationDef(msgspec.Struct):
    name: str
    http: _Http = msgspec.field(default_factory=_Http)
    input: _Ref | None = None
    output: _Ref | None = None


class _Metadata(msgspec.Struct):
    protocol: str
    serviceId: str = ""
    targetPrefix: str = ""
    jsonVersion: str = "1.0"
    awsQueryCompatible: dict[str, str] | None = None
    apiVersion: str = ""
    xmlNamespace: str | dict[str, str] = ""


class _File(msgspec.Struct):
    metadata: _Metadata
    operations: dict[str, _OperationDef]
    shapes: dict[str, _ShapeDef]


class Member(NamedTuple):
    """One member of a structure, or the elements of a list, or a map's keys or values."""

    name: str
    shape: Shape
    #: uri, querystring, header, headers, statusCode, or None for the body.
    location: str | None
    #: What it is called on the wire.
    wire_name: str
    timestamp_format: str | None
    #: For lists and maps in XML and forms: the elements stand where the container would.
    flattened: bool = False


class Shape:
    """A type of the model. `kind` is AWS's word: structure, list, map, string, integer, long, blob, ..."""

    def __init__(self, model: ServiceModel, name: str, definition: _ShapeDef) -> None:
        self._model = model
        self._definition = definition
        self.name = name
        self.kind = "document" if definition.document else definition.type
        self.required: tuple[str, ...] = tuple(definition.required)
        self.min = definition.min
        self.max = definition.max
        self.pattern = definition.pattern
        self.enum: tuple[str, ...] | None = tuple(definition.enum) if definition.enum else None
        self.sensitive = definition.sensitive
        self.payload = definition.payload
        self.event_stream = definition.eventstream
        self.exception = definition.exception
        self.http_status = definition.error.httpStatusCode if definition.error else None
        #: What the query protocol calls an exception, where that is not the shape's name.
        self.error_code = definition.error.code if definition.error else None

    def __repr__(self) -> str:
        return f"<Shape {self.name}: {self.kind}>"

    def _member(self, name: str, ref: _Ref) -> Member:
        shape = self._model.shape(ref.shape)
        stamp = ref.timestampFormat or shape._definition.timestampFormat
        flattened = ref.flattened or shape._definition.flattened
        return Member(name, shape, ref.location, ref.locationName or name, stamp, flattened)

    def _single(self, name: str, ref: _Ref | None) -> Member:
        if ref is None:
            raise TypeError(f"{self.name} is a {self.kind}: it has no {name}")
        return self._member(name, ref)

    @functools.cached_property
    def members(self) -> Mapping[str, Member]:
        """A structure's members by name."""
        return {name: self._member(name, ref) for name, ref in self._definition.members.items()}

    @functools.cached_property
    def body_members(self) -> tuple[Member, ...]:
        """A structure's members that travel in the body."""
        return tuple(member for member in self.members.values() if member.location is None)

    @functools.cached_property
    def element(self) -> Member:
        """What a list holds."""
        return self._single("member", self._definition.member)

    @functools.cached_property
    def key(self) -> Member:
        return self._single("key", self._definition.key)

    @functools.cached_property
    def value(self) -> Member:
        return self._single("value", self._definition.value)


class Operation(NamedTuple):
    name: str
    method: str
    #: Path template with `{Labels}`, possibly with a literal query part behind `?`.
    uri: str
    response_code: int
    input: Shape | None
    output: Shape | None
    #: The element around the output in the query protocol.
    result_wrapper: str | None = None


class ServiceModel:
    """One service: operations and shapes by name."""

    def __init__(self, service: str, file: _File) -> None:
        self.service = service
        self.protocol = file.metadata.protocol
        self.target_prefix = file.metadata.targetPrefix
        self.json_version = file.metadata.jsonVersion
        self.query_compatible = file.metadata.awsQueryCompatible is not None
        self.api_version = file.metadata.apiVersion
        namespace = file.metadata.xmlNamespace
        self.xml_namespace = namespace if isinstance(namespace, str) else namespace.get("uri", "")
        self._file = file
        self._shapes: dict[str, Shape] = {}
        self._operations: dict[str, Operation] = {}

    @property
    def operation_names(self) -> list[str]:
        return list(self._file.operations)

    def __contains__(self, operation: str) -> bool:
        return operation in self._file.operations

    def operation(self, name: str) -> Operation:
        """The operation of that name; KeyError when the service has none."""
        known = self._operations.get(name)
        if known is None:
            found = self._file.operations[name]
            known = self._operations[name] = Operation(
                name,
                found.http.method,
                found.http.requestUri,
                found.http.responseCode,
                self.shape(found.input.shape) if found.input else None,
                self.shape(found.output.shape) if found.output else None,
                found.output.resultWrapper if found.output else None,
            )
        return known

    def routes(self) -> Iterator[tuple[str, str, str]]:
        """Method, path template and name of each operation, without linking their shapes."""
        for name, found in self._file.operations.items():
            yield found.http.method, found.http.requestUri, name

    def shape(self, name: str) -> Shape:
        known = self._shapes.get(name)
        if known is None:
            known = self._shapes[name] = Shape(self, name, self._file.shapes[name])
        return known

    @property
    def shape_names(self) -> list[str]:
        return list(self._file.shapes)

    def error_shape(self, code: str) -> Shape | None:
        """The exception that AWS calls `code`, if the service models it."""
        found = self._file.shapes.get(code)
        return self.shape(code) if found is not None and found.exception else None

    def query_error_code(self, code: str) -> str:
        """What the query protocol calls the error `code`; clients of long ago match on it."""
        shape = self.error_shape(code)
        return shape.error_code or code if shape else code


_DECODER = msgspec.json.Decoder(_File)


@functools.cache
def load(service: str) -> ServiceModel:
    """The newest model of `service` (botocore's directory name, such as `lambda` or `logs`), read once."""
    spec = importlib.util.find_spec("botocore")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("botocore is not installed: Lambent reads AWS's service models from it")
    root = pathlib.Path(spec.submodule_search_locations[0], "data", service)
    versions = sorted(path.name for path in root.iterdir()) if root.is_dir() else []
    for version in reversed(versions):
        compressed = root / version / "service-2.json.gz"
        plain = root / version / "service-2.json"
        if compressed.exists():
            return ServiceModel(service, _DECODER.decode(gzip.decompress(compressed.read_bytes())))
        if plain.exists():
            return ServiceModel(service, _DECODER.decode(plain.read_bytes()))
    raise LookupError(f"botocore has no model of a service named {service!r}")
