"""The hub that timm's weights come from: whether it can be reached, found out before its client's minute of retries.

huggingface_hub tries each file once, looks into its cache, and then tries again with growing pauses; timm does so for
two names of the file. Nothing of that is changed here: where the weights are in the cache, or the hub answers, its
client goes on as it does.
"""

import contextlib
import logging
import selectors
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from urllib.parse import urlsplit

from trainers.progress import tell

SLOW_SECONDS = 3.0  # after which it is told what is waited for
REACH_SECONDS = 8.0  # a slow network connects within these; a network that is not there never
PAUSE_SECONDS = 1.0
PORTS = {"https": 443, "http": 80}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # that timm asks for

Place = tuple[str, int]


@contextlib.contextmanager
def fetching(name: str) -> Iterator[None]:
    """While the weights of timm's network `name` are fetched; raises OSError where they cannot be.

    The lines that huggingface_hub logs for each of its retries are left out: the error that follows says it all.
    """
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)
    words = f"[dim]models: fetching the weights of {name!r} from the network[/]"
    timer = threading.Timer(SLOW_SECONDS, tell, [words])
    timer.daemon = True
    timer.start()
    try:
        _check_hub(name)
        yield
    finally:
        timer.cancel()
        logger.setLevel(level)


def _check_hub(name: str) -> None:
    """Raise OSError when weights are not in the cache and neither the hub nor a proxy can be connected to."""
    from huggingface_hub import constants

    repository = _repository(name)
    if repository is None or constants.HF_HUB_OFFLINE or _is_cached(repository):
        return
    places = _places(constants.ENDPOINT)
    if places and not is_reachable(places, seconds=REACH_SECONDS):
        hosts = " and ".join(f"{host}:{port}" for host, port in places)
        raise OSError(f"no connection to {hosts} within {REACH_SECONDS:g} seconds")


def _repository(name: str) -> str | None:
    """The repository on the hub, perhaps with @revision; None where the weights are not on it."""
    from timm.models import get_pretrained_cfg

    if ":" in name:
        return name.partition(":")[2] if name.startswith(("hf-hub:", "hf_hub:")) else None
    found = get_pretrained_cfg(name)
    return found.hf_hub_id if found is not None and found.hf_hub_id else None


def _is_cached(repository: str) -> bool:
    """Whether a file of weights is in the hub's cache, which its client finds without a network."""
    from huggingface_hub import try_to_load_from_cache

    id_, _, revision = repository.partition("@")
    return any(isinstance(try_to_load_from_cache(id_, file, revision=revision or None), str) for file in WEIGHT_FILES)


def _places(endpoint: str) -> list[Place]:
    """Where the hub's client connects to: the endpoint (HF_ENDPOINT), or a proxy of this machine's settings.

    Empty where one of them cannot be told, which is left to the client.
    """
    scheme = urlsplit(endpoint).scheme
    proxies = urllib.request.getproxies()
    urls = [endpoint, *(proxies[kind] for kind in (scheme, "all") if kind in proxies)]
    places = []
    for url in urls:
        parts = urlsplit(url if "//" in url else f"//{url}")
        try:
            port = parts.port or PORTS.get(parts.scheme)
        except ValueError:  # no number
            return []
        if parts.hostname is None or port is None:
            return []
        places.append((parts.hostname, port))
    return list(dict.fromkeys(places))


def is_reachable(places: list[Place], *, seconds: float) -> bool:
    """Whether a TCP connection to one of these (host, port) can be made within `seconds`; refusals are tried again.

    Looking up a name has no limit of its own, hence the thread.
    """
    answered, until = threading.Event(), time.monotonic() + seconds

    def look() -> None:
        while not answered.is_set() and (left := until - time.monotonic()) > 0:
            if _connects(places, left):
                answered.set()
            time.sleep(min(PAUSE_SECONDS, left))

    threading.Thread(target=look, daemon=True).start()
    return answered.wait(seconds)


def _connects(places: list[Place], seconds: float) -> bool:
    """Try all addresses at once: those of a kind that the network does not carry would take all the time."""
    until = time.monotonic() + seconds
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as sockets:
        for host, port in places:
            try:
                addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError:
                continue
            for family, kind, protocol, _, address in addresses:
                with contextlib.suppress(OSError):  # no IPv6 here, or no route
                    own = sockets.enter_context(socket.socket(family, kind, protocol))
                    own.settimeout(0)
                    with contextlib.suppress(BlockingIOError):
                        own.connect(address)
                    selector.register(own, selectors.EVENT_WRITE)
        while selector.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                assert isinstance(key.fileobj, socket.socket)
                if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    return True
                selector.unregister(key.fileobj)
    return False
