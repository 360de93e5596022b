"""The arguments of requests, checked as they come off the wire, and taken apart to be sent. Pure.

Here is judged whether a request is well formed: the kinds of its fields, that integers fit in 64 bits, the bounds of lists. Whether it
makes sense is the tree's to say, with an errno.
"""

import dataclasses
from collections.abc import Callable
from itertools import product
from operator import attrgetter
from typing import Any, Final

from metadata_server.limits import INODES_PER_MESSAGE, READ_DIRECTORY_ENTRIES, READ_MAP_PAGES, UPDATES_PER_COMMIT
from metadata_server.protocol import requests
from metadata_server.protocol.framing import MalformedError
from metadata_server.protocol.messages import INT_MAX
from metadata_server.protocol.model import ClosedSegment, Update
from metadata_server.protocol.requests import Request

_NONE: Final = type(None)
_NUMBER: Final = (int,)
_NUMBER_OR_NONE: Final = (int, _NONE)
_BYTES: Final = (bytes,)
_BYTES_OR_NONE: Final = (bytes, _NONE)
_BOOL: Final = (bool,)
_LIST: Final = (tuple,)

_FIELDS: Final[dict[type[Request[Any]], tuple[tuple[type, ...], ...]]] = {
    requests.Lookup: (_NUMBER, _BYTES),
    requests.Acquire: (_NUMBER, _NUMBER),
    requests.ReadDirectory: (_NUMBER, _NUMBER, _NUMBER),
    requests.Make: (_NUMBER, _BYTES, _NUMBER, _NUMBER, _NUMBER, _NUMBER, _BYTES_OR_NONE),
    requests.Link: (_NUMBER, _NUMBER, _BYTES),
    requests.Remove: (_NUMBER, _BYTES, _BOOL, _BOOL),
    requests.Rename: (_NUMBER, _BYTES, _NUMBER, _BYTES, _NUMBER, _BOOL),
    requests.SetAttributes: (_NUMBER, *([_NUMBER_OR_NONE] * 5)),
    requests.ReadMap: (_NUMBER, _NUMBER, _NUMBER),
    requests.Commit: (_LIST, _LIST, _BOOL),
    requests.GetXattrs: (_NUMBER,),
    requests.SetXattr: (_NUMBER, _BYTES, _BYTES),
    requests.RemoveXattr: (_NUMBER, _BYTES),
    requests.Release: (_LIST,),
    requests.Touch: (_LIST,),
    requests.Space: (),
    requests.TakeSequences: (_NUMBER,),
    requests.SetQuota: (_NUMBER, _NUMBER_OR_NONE, _NUMBER_OR_NONE),
    requests.GetQuota: (_NUMBER,),
    requests.Sync: (),
    requests.ListSessions: (),
    requests.Evict: (_NUMBER,),
    requests.BeginTask: (_BYTES, _BYTES),
    requests.AskTask: (_NUMBER,),
    requests.Attach: (_NUMBER, _NUMBER, _BYTES),
}

_SHAPES: Final = {
    request.opcode: (request, frozenset(product(*fields)), tuple(i for i, kinds in enumerate(fields) if int in kinds))
    for request, fields in _FIELDS.items()
}

KINDS: Final = {request.opcode: request.__name__ for request in _FIELDS}
"""What each opcode stands for."""


def decode_request(opcode: int, arguments: tuple[Any, ...]) -> Request[Any]:
    """Give the request that came as `arguments`; MalformedError if it is not well formed."""
    shape = _SHAPES.get(opcode)
    if shape is None:
        raise MalformedError(f"no request has the opcode {opcode}")
    request, kinds, numbers = shape
    if tuple(map(type, arguments)) not in kinds:
        raise MalformedError(f"a {request.__name__} whose arguments are of other kinds than its table says")
    for index in numbers:
        number = arguments[index]
        if number is not None and not -INT_MAX <= number <= INT_MAX:
            raise MalformedError(f"a {request.__name__} with the number {number}, which needs more than 64 bits")
    finish = _FINISH.get(opcode)
    return request(*arguments) if finish is None else finish(*arguments)


def _numbers(values: tuple[Any, ...], count: int, limit: int, what: str) -> list[tuple[int, ...]]:
    if len(values) > limit:
        raise MalformedError(f"{len(values)} {what}; at most {limit} are allowed")
    for value in values:
        if type(value) is not tuple or len(value) != count:
            raise MalformedError(f"{what} are arrays of {count}")
        for number in value:
            if type(number) is not int or not -INT_MAX <= number <= INT_MAX:
                raise MalformedError(f"{what} are made of integers of 64 bits")
    return list(values)


def _update(value: Any) -> Update:
    if type(value) is not tuple or len(value) != 6 or type(value[5]) is not bytes:
        raise MalformedError("an update is inode, floor, size, mtime, ctime and runs")
    inode, floor, size, mtime_ns, ctime_ns, runs = value
    for number in (inode, 0 if floor is None else floor, size, mtime_ns, ctime_ns):
        if type(number) is not int or not -INT_MAX <= number <= INT_MAX:
            raise MalformedError("an update is made of integers of 64 bits")
    if size < 0 or (floor is not None and floor < 0):
        raise MalformedError("an update has a size below zero")
    return Update(inode, floor, size, mtime_ns, ctime_ns, runs)


def _commit(updates: tuple[Any, ...], closed: tuple[Any, ...], durable: bool) -> Request[Any]:
    if len(updates) > UPDATES_PER_COMMIT:
        raise MalformedError(f"{len(updates)} updates; at most {UPDATES_PER_COMMIT} are allowed")
    segments = [ClosedSegment(*each) for each in _numbers(closed, 3, UPDATES_PER_COMMIT, "closed segments")]
    return requests.Commit([_update(each) for each in updates], segments, durable)


def _release(inodes: tuple[Any, ...]) -> Request[Any]:
    if len(inodes) > INODES_PER_MESSAGE:
        raise MalformedError(f"{len(inodes)} inodes; at most {INODES_PER_MESSAGE} are allowed")
    for inode in inodes:
        if type(inode) is not int or not 0 < inode <= INT_MAX:
            raise MalformedError("a Release is a list of inodes")
    return requests.Release(list(inodes))


def _touch(times: tuple[Any, ...]) -> Request[Any]:
    return requests.Touch([(inode, time) for inode, time in _numbers(times, 2, INODES_PER_MESSAGE, "access times")])


def _read_directory(directory: int, after: int, limit: int) -> Request[Any]:
    if not 0 < limit <= READ_DIRECTORY_ENTRIES:
        raise MalformedError(f"a listing of {limit} entries; 1 to {READ_DIRECTORY_ENTRIES} are allowed")
    return requests.ReadDirectory(directory, after, limit)


def _read_map(inode: int, first_page: int, pages: int) -> Request[Any]:
    if first_page < 0 or not 0 < pages <= READ_MAP_PAGES:
        raise MalformedError(f"a map of {pages} pages; 1 to {READ_MAP_PAGES} are allowed")
    return requests.ReadMap(inode, first_page, pages)


def _acquire(inode: int, lease: int) -> Request[Any]:
    if not 1 <= lease <= 2:
        raise MalformedError("an Acquire is for READ (1) or WRITE (2)")
    return requests.Acquire(inode, lease)


_FINISH: Final[dict[int, Callable[..., Request[Any]]]] = {
    requests.Acquire.opcode: _acquire,
    requests.Commit.opcode: _commit,
    requests.Release.opcode: _release,
    requests.Touch.opcode: _touch,
    requests.ReadDirectory.opcode: _read_directory,
    requests.ReadMap.opcode: _read_map,
}


def _taker(request: type[Request[Any]]) -> Callable[[Request[Any]], tuple[Any, ...]]:
    names = [field.name for field in dataclasses.fields(request)]  # type: ignore[arg-type]
    if not names:
        return lambda _: ()
    if len(names) == 1:
        single = attrgetter(names[0])
        return lambda request: (single(request),)
    return attrgetter(*names)


_TAKERS: Final = {request.opcode: _taker(request) for request in _FIELDS}


def arguments_of(request: Request[Any]) -> tuple[Any, ...]:
    """Give a request's arguments as they are sent."""
    return _TAKERS[request.opcode](request)
