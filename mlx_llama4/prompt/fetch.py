"""Fetch a picture from the web, within limits of size, time and redirects.

Addresses that only this machine or its network reaches (loopback, private, link-local and the like)
are refused, unless the user typed the URL. The address that is checked is the one connected to, so
a name that resolves to another address a moment later gains nothing. Proxies are not used, because
no address behind one could be checked.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from mlx_llama4.errors import ImageError, one_line

PORTS = {"http": 80, "https": 443}
REDIRECTS = {301, 302, 303, 307, 308}
READ_BYTES = 2**16
SHOWN_CHARACTERS = 100  # of a URL, in messages
# RFC 6052: how networks that speak only IPv6 write an IPv4 address.
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


@dataclass(frozen=True)
class Fetching:
    """Whether pictures are fetched from URLs, and within which limits."""

    allowed: bool = True
    # Whether addresses of this machine and its network are allowed, as for a URL that a user typed.
    # After a redirect they are not, except on the host and port that were typed.
    private: bool = False
    seconds: float = 30.0  # for all of it
    most_bytes: int = 64 * 10**6
    most_redirects: int = 5


@dataclass(frozen=True, repr=False)
class Fetched:
    """What a URL led to."""

    url: str
    data: bytes


def fetch(url: str, fetching: Fetching = Fetching()) -> Fetched:
    """Return what an http(s) URL leads to. Raises ImageError, which names the URL."""
    name = shown(url)
    if not fetching.allowed:
        raise ImageError(f"{name} is not fetched, because of --no-fetch; give the path of a file")
    work = _Work(url, fetching)
    # In a thread of its own, since nothing else bounds how long a name takes to resolve.
    threading.Thread(target=work.run, daemon=True).start()
    try:
        in_time = work.done.wait(fetching.seconds)
    finally:
        work.abandon()
    if not in_time or work.is_late:
        raise ImageError(f"{name} took longer than {fetching.seconds:g} s; download it first")
    if work.failure is not None:
        raise ImageError(f"{name}{work.failure}")
    return Fetched(url, work.data)


def shown(url: str) -> str:
    """A URL as messages quote it: without a query, which may hold a secret, and not too long."""
    bare = url.partition("#")[0].partition("?")[0]
    scheme, _, rest = bare.partition("//")
    host, slash, path = rest.partition("/")
    bare = one_line(f"{scheme}//{host.rpartition('@')[2]}{slash}{path}")
    return bare if len(bare) <= SHOWN_CHARACTERS else f"{bare[: SHOWN_CHARACTERS - 1]}…"


def file_name(url: str) -> str:
    """What to call the picture at a URL: the end of its path, or its host."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "picture"
    return one_line(unquote(parts.path.rpartition("/")[2])) or parts.hostname or "picture"


def is_public(address: str) -> bool:
    """Can anybody on the internet reach this IP address? Not for one that wraps a private one."""
    return all(
        one.is_global and not one.is_multicast and not one.is_reserved
        for one in _meant(ipaddress.ip_address(address.partition("%")[0]))
    )


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _meant(address: Address) -> list[Address]:
    """The addresses that packets to this one reach: of IPv6's wrappings, what is inside."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)]
    inside = [address.sixtofour, *(address.teredo or ())]
    return [address, *(one for one in inside if one is not None)]


class _FetchError(Exception):
    """Its text follows the URL in a message."""


class _Work:
    """One fetch, in its thread: `data` or `failure` is set once it is `done`."""

    def __init__(self, url: str, fetching: Fetching):
        self._url, self._fetching = url, fetching
        self._until = time.monotonic() + fetching.seconds
        self._socket: socket.socket | None = None
        self._is_abandoned = False
        self._lock = threading.Lock()  # held while the socket changes, or is shut down
        self.done = threading.Event()
        self.data = b""
        self.failure: str | None = None
        self.is_late = False

    def run(self) -> None:
        try:
            self.data = self._follow()
        except _FetchError as failure:
            self.failure = str(failure)
        except TimeoutError:
            self.is_late = True
        except ssl.SSLError as failure:
            self.failure = f": no secure connection ({_words(failure)})"
        except OSError as failure:
            self.failure = f" cannot be fetched ({_words(failure)})"
        except http.client.IncompleteRead:
            self.failure = ": the server stopped before the end"
        except Exception as failure:  # the server is foreign, and may answer anything
            self.failure = f": the server's answer cannot be read ({type(failure).__name__})"
        self.done.set()

    def abandon(self) -> None:
        """End it, whatever it waits for."""
        with self._lock:
            self._is_abandoned = True
            if self._socket is not None:
                with contextlib.suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def _follow(self) -> bytes:
        url, typed = self._url, _origin(_parts(self._url))
        for _ in range(self._fetching.most_redirects + 1):
            parts = _parts(url)
            private = self._fetching.private and _origin(parts) == typed
            with self._answer(parts, private) as response:
                if response.status not in REDIRECTS:
                    return self._body(response)
                location = response.headers.get("Location")
            if not location:
                raise _FetchError(": the server redirects to nowhere")
            url = _joined(url, location)
        raise _FetchError(f" is redirected more than {self._fetching.most_redirects} times")

    @contextlib.contextmanager
    def _answer(self, parts: SplitResult, private: bool) -> Iterator[http.client.HTTPResponse]:
        """Ask for a page. private: whether addresses may be private."""
        host, port = _host(parts), parts.port or PORTS[parts.scheme]
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection, tls = kind(host, port), _tls() if secure else None
        try:
            connection.sock = self._connected(host, port, private)
            with self._lock:
                if self._is_abandoned:
                    raise TimeoutError
                if tls is not None:
                    connection.sock = tls.wrap_socket(
                        connection.sock, server_hostname=host, do_handshake_on_connect=False
                    )
                self._socket = connection.sock
            if isinstance(connection.sock, ssl.SSLSocket):
                connection.sock.do_handshake()  # now that `abandon` can end it
            path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
            query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]") if parts.query else ""
            headers = {"User-Agent": "mlx-llama4", "Accept": "image/*, */*;q=0.5"}
            connection.request("GET", path + query, headers=headers | {"Connection": "close"})
            with connection.getresponse() as response:
                yield response
        finally:
            connection.close()

    def _connected(self, host: str, port: int, private: bool) -> socket.socket:
        """Connect to the first of a host's addresses that is allowed and answers."""
        failure: Exception = _FetchError(f": {host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        ):
            if not private and not is_public(str(address[0])):
                where = "" if address[0] == host else f" ({address[0]})"
                failure = _FetchError(
                    f": {host}{where} is an address of this machine or its network; pictures are "
                    "fetched from there only if -i names them on the command line"
                )
                continue
            left = self._until - time.monotonic()
            if left <= 0 or self._is_abandoned:
                break
            connecting = socket.socket(family, kind, protocol)
            try:
                connecting.settimeout(left)
                connecting.connect(address)
            except OSError as refused:
                connecting.close()
                failure = refused
            else:
                return connecting
        raise failure

    def _body(self, response: http.client.HTTPResponse) -> bytes:
        most = self._fetching.most_bytes
        if response.status != HTTPStatus.OK:
            raise _FetchError(f": the server answers {_status(response.status)}")
        if (coding := response.headers.get("Content-Encoding", "identity")) != "identity":
            raise _FetchError(f" comes in the coding {one_line(coding, 40)}, which is not read")
        if (response.length or 0) > most:
            raise _too_large(most)
        if response.headers.get_content_type() == "text/html":
            raise _FetchError(
                " is a web page, not a picture; give the address of the picture itself"
            )
        data = bytearray()
        while piece := response.read(READ_BYTES):
            data += piece
            if len(data) > most:
                raise _too_large(most)
            if self._is_abandoned:
                break
        if response.length:
            raise _FetchError(f": the server stopped {response.length:,} bytes before the end")
        return bytes(data)


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port  # a ValueError if it is no number
    except ValueError:
        raise _FetchError(" is no valid URL") from None
    if parts.scheme not in PORTS:
        raise _FetchError(f": it leads to {shown(url)}, which is no http(s) URL")
    if not parts.hostname:
        raise _FetchError(" is no valid URL")
    if parts.username is not None or parts.password is not None:
        raise _FetchError(": URLs with a user's name or password are not fetched")
    return parts


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise _FetchError(": the server redirects to no valid URL") from None


def _host(parts: SplitResult) -> str:
    """The host's name in ASCII."""
    host = parts.hostname or ""
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        raise _FetchError(" has no valid host") from None


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or PORTS[parts.scheme]


def _tls() -> ssl.SSLContext:
    """Verify as the system does: Pythons from python.org come without certificates on macOS."""
    try:
        import truststore  # with huggingface_hub
    except ImportError:
        return ssl.create_default_context()
    return truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _status(status: int) -> str:
    """The number with our own words, since the server's may say anything."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _too_large(most: int) -> _FetchError:
    return _FetchError(f" has more than {most // 10**6} MB; download it, and scale it down")


def _words(failure: OSError) -> str:
    return one_line(failure.strerror or str(failure) or type(failure).__name__, 200)
