"""Messages on the control socket, with their bounds.

A client sends one `Call`; for `exec` and `console` it may send `Input`s after it. The service
answers with any number of `Output`s and then one `Done` or `Failed`, and closes. Messages are
MessagePack in frames (`wire.frames`); a field that is unknown, missing or of another type makes
the message malformed, and a malformed message closes the connection.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from skerry.errors import WireError
from skerry.wire.system_files import Asserting, Signature

MAX_NAME = 64
"""Longest name of a domain in a call, in characters; a longer one is refused."""

MAX_TEXT = 2048
"""Longest label in a call, and longest word of a command, in characters; longer is refused."""

MAX_SECONDS = 86_400
"""Longest time that a call may ask to wait, in seconds; a longer one is refused."""

MAX_GRANT_SECONDS = 365 * 86_400
"""Longest bounded grant (`connect --for`), in seconds; a longer one is refused."""

MIN_MEMORY = 4096
"""Smallest memory that domains share, in bytes; a smaller one is refused."""

MAX_MEMORY = 1 << 30
"""Largest memory that domains share, in bytes; a larger one is refused."""

MEMORY_SIZES = "a memory's size is a power of two, from 4K to 1G"
"""What `is_memory_size` says, in words."""

MIN_NONCE = 8
"""Fewest bytes of the nonce of a statement about a TPM; a shorter one is refused."""

MAX_NONCE = 64
"""Most bytes of the nonce of a statement about a TPM; a longer one is refused."""

Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Chunk = Annotated[bytes, Meta(max_length=64 * 1024)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]

PORT = r"\A((?!skerry\.)[a-z0-9][a-z0-9.-]{0,30})?\Z"
Port = Annotated[str, Meta(pattern=PORT)]
"""A port's name as in the system file, or nothing."""


def is_memory_size(size: int) -> bool:
    """Say whether a memory that domains share may have so many bytes."""
    return MIN_MEMORY <= size <= MAX_MEMORY and not size & (size - 1)


MAX_ARGUMENTS = 256
"""Most words of a command given to `exec`, and most booleans set in one call."""


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="op"):
    pass


class Ps(_Message, frozen=True, tag="ps"):
    """List the domains that the operator may see."""


class Health(_Message, frozen=True, tag="health"):
    """Say how the node's own helpers are: who decides, who writes the trail."""


class Channels(_Message, frozen=True, tag="channels"):
    """List the channels between domains that the operator may see."""


class PolicyShow(_Message, frozen=True, tag="policy-show"):
    """Show the policy in force."""


class PolicyLoad(_Message, frozen=True, tag="policy-load"):
    """Bring a policy into force; `Input` carries the file, an empty one ends it."""

    file: Text
    evict: bool = False
    dry_run: bool = False
    signature: Signature = b""
    assertions: Asserting = b""


class SetBooleans(_Message, frozen=True, tag="set-booleans"):
    """Set booleans of the policy in force, as a load."""

    values: Annotated[dict[Text, bool], Meta(min_length=1, max_length=MAX_ARGUMENTS)]
    evict: bool = False
    dry_run: bool = False


class RaiseAlarm(_Message, frozen=True, tag="alarm"):
    """Apply an emergency set of the system file."""

    name: Name


class Start(_Message, frozen=True, tag="start"):
    """Start a domain of the system file, with the channels declared for it."""

    domain: Name


class Stop(_Message, frozen=True, tag="stop"):
    """Stop a domain cleanly, ending it when the deadline has passed."""

    domain: Name
    deadline_s: Seconds = 10.0


class Kill(_Message, frozen=True, tag="kill"):
    """End a domain at once."""

    domain: Name


class Pause(_Message, frozen=True, tag="pause"):
    """Stop a domain's processors."""

    domain: Name


class Resume(_Message, frozen=True, tag="resume"):
    """Let a domain's processors run again."""

    domain: Name


class Relabel(_Message, frozen=True, tag="relabel"):
    """Give a running domain another label."""

    domain: Name
    label: Text


class Connect(_Message, frozen=True, tag="connect"):
    """Bind a channel between two domains, or a domain's use of a resource, which has its kind.

    `one_way`: from source to sink only, or only to be read; `size` in bytes, of a memory.
    """

    source: Name
    sink: Name
    kind: Literal["stream", "link", "memory"] = "stream"
    port: Port = ""
    one_way: bool = False
    for_s: Annotated[float, Meta(gt=0, le=MAX_GRANT_SECONDS)] | None = None
    overflow: Literal["block", "drop"] = "block"
    size: Annotated[int, Meta(ge=0, le=MAX_MEMORY)] = 0


class Cut(_Message, frozen=True, tag="cut"):
    """Revoke a channel."""

    channel: Annotated[int, Meta(ge=1, lt=2**53)]


class Disks(_Message, frozen=True, tag="disks"):
    """List the disks that the operator may release."""


class ReleaseDisk(_Message, frozen=True, tag="release-disk"):
    """Make what is on a disk unreadable, and forget who wrote it."""

    disk: Name


class ForgetDisk(_Message, frozen=True, tag="forget-disk"):
    """Forget who wrote a disk whose image is gone for good."""

    disk: Name


class Exec(_Message, frozen=True, tag="exec"):
    """Run a command in a guest; `Input` carries its standard input, an empty one ends it."""

    domain: Name
    argv: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=MAX_ARGUMENTS)]
    stdin: bool = False
    wait_s: Seconds = 60.0


class Console(_Message, frozen=True, tag="console"):
    """Read a domain's console, its last output first, and write what `Input` carries.

    `read_only`: nothing may be written, and only reading is asked for.
    """

    domain: Name
    read_only: bool = False


class Down(_Message, frozen=True, tag="down"):
    """Stop everything, then the service."""

    deadline_s: Seconds = 10.0


class Reconcile(_Message, frozen=True, tag="reconcile"):
    """Make the system what a file says; `Input` carries `SystemFiles`, an empty one ends it.

    `Output` of the stream `progress` carries one JSON object a line: the plan, then what is done.
    """

    evict: bool = False
    dry_run: bool = False


class TpmStatement(_Message, frozen=True, tag="tpm-statement"):
    """Sign what a domain is that uses a TPM, over the asker's nonce."""

    domain: Name
    nonce: Annotated[bytes, Meta(min_length=MIN_NONCE, max_length=MAX_NONCE)]


class Replica(_Message, frozen=True, tag="replica"):
    """Say how the audit replica stands."""


class ReplicaRecords(_Message, frozen=True, tag="replica-records"):
    """Give the audit replica's next file of records: the first that begins behind `after`.

    The result is bytes from a guest, untrusted; none means that there is no further one.
    """

    after: Annotated[int, Meta(ge=0, lt=1 << 53)] = 0


class Restart(_Message, frozen=True, tag="restart"):
    """Let another process of the service take over; domains and channels go on."""


Call = (
    Ps | Health | Channels | PolicyShow | PolicyLoad | SetBooleans | RaiseAlarm | Start | Stop
    | Kill | Pause | Resume | Relabel | Connect | Cut | Disks | ReleaseDisk | Exec | Console | Down
    | Reconcile | Restart | TpmStatement | ForgetDisk | Replica
    | ReplicaRecords
)  # fmt: skip


class Input(_Message, frozen=True, tag="input"):
    """Bytes from the operator to the guest; none means the end."""

    data: Chunk


class Output(_Message, frozen=True, tag="output"):
    """Bytes from a guest to the operator. Untrusted: escape before showing on a terminal."""

    stream: Literal["out", "err", "console", "progress"]
    data: Chunk


class Done(_Message, frozen=True, tag="done"):
    """The call succeeded; `result` is what `--json` prints."""

    result: Any = None


class Failed(_Message, frozen=True, tag="failed"):
    """The call failed: one line, what to do, the exit code, and the explanation of a denial."""

    message: str
    fix: str = ""
    exit_code: int = 1
    code: str = ""
    record: int = 0
    explanation: dict[str, Any] | None = None
    text: str = ""


Reply = Output | Done | Failed

_encoder = msgspec.msgpack.Encoder()
_call: msgspec.msgpack.Decoder[Call] = msgspec.msgpack.Decoder(Call)
_input: msgspec.msgpack.Decoder[Input] = msgspec.msgpack.Decoder(Input)
_reply: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Call | Input | Reply) -> bytes:
    """Return the bytes of one message, without its frame. Raises `WireError` if it has none."""
    try:
        return _encoder.encode(message)
    except UnicodeEncodeError:
        raise WireError("a text is not valid UTF-8", fix="write it in UTF-8") from None


def decode_call(untrusted: bytes) -> Call:
    """Check and decode a client's first message. Raises `WireError`."""
    try:
        return _call.decode(untrusted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"malformed call: {error}") from None


def decode_input(untrusted: bytes) -> Input:
    """Check and decode what a client sends after its call. Raises `WireError`."""
    try:
        return _input.decode(untrusted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"malformed input: {error}") from None


def decode_reply(untrusted: bytes) -> Reply:
    """Check and decode what the service sends. Raises `WireError`."""
    try:
        return _reply.decode(untrusted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"malformed reply: {error}") from None
